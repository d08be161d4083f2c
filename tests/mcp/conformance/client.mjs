// The protocol's own TypeScript client against our server: `node client.mjs URL`, or
// over stdio `node client.mjs COMMAND ARGUMENT…`.
import assert from 'node:assert/strict';
import { Client, StreamableHTTPClientTransport } from '@modelcontextprotocol/client';
import { StdioClientTransport } from '@modelcontextprotocol/client/stdio';

const [first, ...args] = process.argv.slice(2);

for (const mode of ['legacy', 'auto']) {
  const transport = first.startsWith('http')
    ? new StreamableHTTPClientTransport(new URL(first))
    : new StdioClientTransport({ command: first, args, env: process.env });
  const client = new Client({ name: 'typescript', version: '1' }, { versionNegotiation: { mode } });
  await client.connect(transport);
  const { tools } = await client.listTools();
  assert.deepEqual(tools.map((tool) => tool.name).sort(), [
    'add_documents', 'delete_documents', 'find_similar', 'get_document', 'list_indexes', 'search_documents',
  ]);
  const call = async (name, given) => (await client.callTool({ name, arguments: given })).structuredContent;
  const added = await call('add_documents', { documents: [{ text: `a note in era ${mode}`, title: mode }] });
  assert.equal(added.items[0].status, 'created');
  const found = await call('search_documents', { query: `note in era ${mode}`, limit: 1 });
  assert.equal(found.hits[0].title, mode);
  const { contents } = await client.readResource({ uri: found.hits[0].uri });
  assert.ok(contents[0].text.includes(mode));
  const refused = await client.callTool({ name: 'search_documents', arguments: { query: 'x', colour: 1 } });
  assert.ok(refused.isError && refused.content[0].text.includes('there is no such argument'));
  const gone = await call('delete_documents', { keys: [found.hits[0].key] });
  assert.equal(gone.items[0].status, 'deleted');
  await client.close();
}
console.log('the TypeScript client is content');
