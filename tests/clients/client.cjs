// Lists and calls the tools of a server with the official TypeScript clients.
//
// client.cjs sdk|legacy|auto PLAN COMMAND...
//
// `sdk` is @modelcontextprotocol/sdk 1.x; the other two are modes of @modelcontextprotocol/client 2.x.
// PLAN is a JSON list of [tool, arguments]. The step ["pause", {"ready": FILE, "go": FILE}] creates the first file and waits for
// the second. Prints one line of JSON: the protocol version, the tools in the server's
// order, and each result as the client returns it. Complaints of the client go to stderr.

const fs = require('node:fs');

const [way, planText, command, ...args] = process.argv.slice(2);
const plan = JSON.parse(planText);
const about = { name: 'anklume-tests', version: '1' };

function connectable() {
    if (way === 'sdk') {
        const { Client } = require('@modelcontextprotocol/sdk/client/index.js');
        const { StdioClientTransport } = require('@modelcontextprotocol/sdk/client/stdio.js');
        return [new Client(about), StdioClientTransport];
    }
    const { Client } = require('@modelcontextprotocol/client');
    const { StdioClientTransport } = require('@modelcontextprotocol/client/stdio');
    return [new Client(about, { versionNegotiation: { mode: way } }), StdioClientTransport];
}

async function main() {
    const [client, StdioClientTransport] = connectable();
    client.onerror = (error) => console.error(String(error));
    const transport = new StdioClientTransport({ command, args, env: process.env, stderr: 'inherit' });
    let version;
    // The 1.x client tells only its transport which version was negotiated.
    transport.setProtocolVersion = (agreed) => (version = agreed);
    await client.connect(transport);
    version = client.getNegotiatedProtocolVersion?.() ?? version;
    const listed = await client.listTools();
    const results = [];
    for (const [name, callArguments] of plan) {
        if (name === 'pause') {
            fs.writeFileSync(callArguments.ready, '');
            while (!fs.existsSync(callArguments.go)) await new Promise((resolve) => setTimeout(resolve, 20));
            continue;
        }
        let result;
        try {
            result = await client.callTool({ name, arguments: callArguments });
        } catch (refused) {
            results.push({ error: true, text: [String(refused.message)], structured: null });
            continue;
        }
        results.push({
            error: result.isError ?? false,
            text: result.content.filter((block) => block.type === 'text').map((block) => block.text),
            types: result.content.map((block) => block.type),
            structured: result.structuredContent ?? null,
        });
    }
    await client.close();
    console.log(JSON.stringify({ version, tools: listed.tools.map((tool) => tool.name), results }));
}

main().catch((error) => {
    console.error(error);
    process.exitCode = 1;
});
