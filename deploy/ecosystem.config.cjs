// PM2: the server and a Node service that it watches.   pm2 start ecosystem.config.cjs
// `interpreter: 'none'`: tocsin is a program of its own. `treekill: false`: PM2 signals tocsin alone, which passes
// it on. `kill_timeout`: longer than a clean stop takes; PM2's own is 1.6 s.
'use strict';

const tocsin = {
  script: '/opt/tocsin/bin/tocsin',
  interpreter: 'none',
  exec_mode: 'fork',
  instances: 1,
  treekill: false,
  exp_backoff_restart_delay: 200, // milliseconds, growing to 15 s in a crash loop
};

module.exports = {
  apps: [
    {
      ...tocsin,
      name: 'tocsin',
      args: ['serve'],
      kill_timeout: 35000,
    },
    {
      ...tocsin,
      name: 'shop',
      args: ['run', '--', 'node', 'app.js'],
      cwd: '/srv/shop',
      kill_timeout: 35000,
      env: {
        TOCSIN_SERVICE: 'shop',
        TOCSIN_ENDPOINT: 'http://127.0.0.1:4318', // else two users have two databases, and nothing rings
        NODE_ENV: 'production',
      },
    },
  ],
};
