// Follows an operation through Google's gax for Node, by its REST fallback:
//
//	node rest.js URL wait|cancel NAME
//
// What came of it is printed as JSON: {response}, or {code, message} of the error.
'use strict';

const fs = require('node:fs');
const path = require('node:path');
const gax = require('google-gax/fallback');
const {PassThroughClient} = require('google-auth-library');

const POLLING = {
  initialRetryDelayMillis: 20,
  retryDelayMultiplier: 1,
  maxRetryDelayMillis: 20,
  totalTimeoutMillis: 60_000,
};

// Generated clients have those of their service. Without any gax asks for /v1/operations/operations%2FID.
const SELECTOR = 'google.longrunning.Operations';
const RULES = [
  {selector: `${SELECTOR}.GetOperation`, get: '/v1/{name=operations/**}'},
  {selector: `${SELECTOR}.CancelOperation`, post: '/v1/{name=operations/**}:cancel', body: '*'},
];

function protosOf(name) {
  const directory = path.join(__dirname, 'node_modules/google-gax/build/protos');
  return JSON.parse(fs.readFileSync(path.join(directory, `${name}.json`)));
}

async function call(url, method, name) {
  const {protocol, hostname, port} = new URL(url);
  // As in a client that Google generates: the service, and each type that its operations have inside.
  const protos = protosOf('operations');
  protos.nested.google.nested.rpc = protosOf('status').nested.google.nested.rpc;
  const protoJson = gax.protobufFromJSON(protos);
  protoJson.addJSON(gax.protobuf.common.get('google/protobuf/struct.proto').nested);
  const lro = gax.lro({auth: new PassThroughClient(), fallback: true, httpRules: RULES, protoJson});
  const client = lro.operationsClient({
    servicePath: hostname,
    port: Number(port),
    protocol: protocol.slice(0, -1),
    fallback: true,
  });
  if (method === 'cancel') {
    await client.cancelOperation({name});
    return {};
  }
  const [got] = await client.getOperation({name});
  console.error('waiting'); // whoever started this may now end the operation
  const Struct = protoJson.lookupType('google.protobuf.Struct');
  const decode = bytes => Struct.decode(bytes);
  // As a client that Google generates wraps what its methods return.
  const descriptor = new gax.LongrunningDescriptor(client, decode, decode);
  const followed = gax.operation(got, descriptor, POLLING);
  const [response] = await followed.promise();
  return {response: response.fields ? {name: response.fields.name.stringValue} : {}};
}

call(...process.argv.slice(2))
  .catch(error => ({code: error.code, message: error.message}))
  .then(said => {
    console.log(JSON.stringify(said));
    process.exit();
  });
