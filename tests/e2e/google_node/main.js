// Follows an operation through Google's gax for Node, plaintext:
//
//	node main.js ADDRESS wait|cancel NAME
//
// What came of it is printed as JSON: {response}, or {code, message} of the error.
'use strict';

const gax = require('google-gax');

const POLL_INTERVAL_MS = 20;
const PATIENCE_MS = 60_000;

async function call(address, method, name) {
  const [servicePath, port] = address.split(':');
  const client = gax.lro().operationsClient({
    servicePath,
    port: Number(port),
    sslCreds: gax.grpc.credentials.createInsecure(),
  });
  if (method === 'cancel') {
    await client.cancelOperation({name});
    return {};
  }
  const [got] = await client.getOperation({name});
  console.error('waiting'); // whoever started this may now end the operation
  const Struct = gax.protobuf.Root.fromJSON(
    gax.protobuf.common.get('google/protobuf/struct.proto'),
  ).lookupType('google.protobuf.Struct');
  const decode = bytes => Struct.decode(bytes);
  // As a client that Google generates wraps what its methods return.
  const followed = gax.operation(
    got,
    new gax.LongrunningDescriptor(client, decode, decode),
    gax.createBackoffSettings(POLL_INTERVAL_MS, 1, POLL_INTERVAL_MS, null, null, null, PATIENCE_MS),
  );
  const [response] = await followed.promise();
  return {response: response.fields ? {name: response.fields.name.stringValue} : {}};
}

call(...process.argv.slice(2))
  .catch(error => ({code: error.code, message: error.message}))
  .then(said => {
    console.log(JSON.stringify(said));
    process.exit();
  });
