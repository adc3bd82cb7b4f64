// A shop on Express with nothing of tocsin's in it; it fails in the ways that its routes are called.
'use strict';
const express = require('express');
const { trace } = require('@opentelemetry/api');
const { logs } = require('@opentelemetry/api-logs');

class PaymentRefused extends Error {
  constructor(message) {
    super(message);
    this.name = 'PaymentRefused';
  }
}

function charge(order) {
  throw new PaymentRefused(`order ${order} cannot be paid`);
}

async function reserve(order) {
  await null;
  throw new TypeError(`order ${order} has no items`);
}

const app = express();
app.get('/ok', (request, response) => response.send('ok'));
app.get('/sync/:order', (request) => charge(request.params.order));
app.get('/async/:order', async (request) => reserve(request.params.order));
app.get('/code/:order', async () => {
  throw Object.assign(new Error('connect ECONNREFUSED 127.0.0.1:5432'), { code: 'ECONNREFUSED' });
});
app.get('/handled/:order', (request, response) => {
  trace.getActiveSpan().recordException(new RangeError(`order ${request.params.order} is too long`));
  response.send('sorry');
});
app.get('/both/:order', async (request) => {
  const error = new Error(`order ${request.params.order} is here and there`);
  logs.getLogger('shop').emit({ severityNumber: 17, body: 'no reservation', exception: error });
  throw error; // and the spans that it passes through tell of it as well
});
app.get('/expected', (request, response) => response.status(404).send('no such thing'));
app.get('/crash', (request, response) => {
  response.send('bye');
  setImmediate(() => charge('the last one'));
});
app.get('/forgotten', (request, response) => {
  response.send('bye');
  reserve('that nobody waits for');
});
if (process.env.SHUTS_DOWN) {
  process.on('SIGTERM', () => {
    logs.getLogger('shop').emit({ severityNumber: 17, body: 'shutdown', exception: new Error('a file was left open') });
    server.close();
    server.closeAllConnections();
  });
}
const server = app.listen(Number(process.env.PORT || 0), '127.0.0.1', () => {
  console.log(`listening on ${server.address().port}`);
});
