// Node under tocsin: node --require ./tocsin.cjs app.js   (see docs/node.md)
// OpenTelemetry's auto-instrumentation, and what it does not send by itself: how the process dies.
'use strict';
const { writeFileSync } = require('node:fs');
const defaults = { OTEL_METRICS_EXPORTER: 'none', OTEL_NODE_RESOURCE_DETECTORS: 'env,os,process',
  OTEL_BSP_SCHEDULE_DELAY: '500', OTEL_BLRP_SCHEDULE_DELAY: '200' }; // milliseconds until an error leaves
for (const [name, value] of Object.entries(defaults)) process.env[name] ??= value;

const { OTLPExporterBase } = require('@opentelemetry/otlp-exporter-base');
const { export: exportOnce } = OTLPExporterBase.prototype; // gives up after ten seconds without a server
OTLPExporterBase.prototype.export = function (items, done, tries = 60) {
  exportOnce.call(this, items, (result) => {
    const isLast = !result.code && [].concat(items).some((one) => one.attributes?.['tocsin.exit']);
    if (isLast) try { writeFileSync(process.env.TOCSIN_TOLD, ''); } catch {} // so that `tocsin run` need not tell of it
    const isRefused = Number.isInteger(result.error?.code); // a status that no other try would change
    const isAgain = result.code && !isRefused && tries && !stopping;
    return isAgain ? setTimeout(() => this.export(items, done, tries - 1), 2000).unref() : done(result);
  });
};

require('@opentelemetry/auto-instrumentations-node/register');
const { logs } = require('@opentelemetry/api-logs');
const [flush] = process.listeners('SIGTERM'); // the SDK's: it sends what is left, and lets nothing follow
process.off('SIGTERM', flush);
let stopping = false;
const sendTheRest = (ms) => { stopping = true; return Promise.race([flush(), new Promise((end) => setTimeout(end, ms))]); };

async function died(reason, mechanism) {
  const isLast = process.listenerCount(mechanism) === 1; // else the program handles it, and lives on
  logs.getLogger('node').emit({ severityNumber: isLast ? 21 : 17, body: String(reason?.message ?? reason), exception: reason,
    attributes: { 'tocsin.mechanism': mechanism, 'tocsin.handled': !isLast, 'tocsin.exit': isLast } });
  if (!isLast) return;
  console.error(reason);
  await sendTheRest(3000);
  process.exit(1);
}
process.on('uncaughtException', (error) => died(error, 'uncaughtException'));
process.on('unhandledRejection', (reason) => died(reason, 'unhandledRejection'));
process.once('SIGTERM', async () => { // the program's own handlers shut it down, and what they raise is sent
  if (process.listenerCount('SIGTERM')) return process.once('beforeExit', () => sendTheRest(3000));
  await sendTheRest(3000);
  process.kill(process.pid, 'SIGTERM');
});
