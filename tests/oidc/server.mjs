// oidc-provider (certified, by panva) on a free loopback port, with one client for each way to
// authenticate. Reads {secret, jwk} as one line of JSON from stdin, prints {issuer} as one
// line, and ends when stdin closes, so that it cannot outlive the tests that started it.
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';

const { provider: { Provider }, given } = await start();
const server = createServer((request, response) => app(request, response));
let app;

server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}`;
  app = new Provider(issuer, configuration(given)).callback();
  process.stdout.write(`${JSON.stringify({ issuer, node: process.version })}\n`);
});

async function start() {
  const lines = createInterface({ input: process.stdin });
  lines.on('close', () => process.exit(0));
  const first = new Promise((resolve) => lines.once('line', resolve));
  return { provider: await import('oidc-provider'), given: JSON.parse(await first) };
}

function configuration({ secret, jwk }) {
  const client = (client_id, token_endpoint_auth_method, more) => ({
    client_id,
    token_endpoint_auth_method,
    grant_types: ['client_credentials'],
    response_types: [],
    redirect_uris: [],
    scope: 'read write',
    ...more,
  });
  return {
    clients: [
      client('poster', 'client_secret_post', { client_secret: secret }),
      client('basic:one', 'client_secret_basic', { client_secret: secret }),
      client('signer', 'private_key_jwt', {
        jwks: { keys: [jwk] },
        token_endpoint_auth_signing_alg: jwk.alg,
      }),
    ],
    scopes: ['read', 'write', 'admin'],
    clientAuthMethods: ['client_secret_post', 'client_secret_basic', 'private_key_jwt'],
    ttl: { ClientCredentials: 600 },
    features: {
      devInteractions: { enabled: false },
      clientCredentials: { enabled: true },
      introspection: { enabled: true },
      resourceIndicators: {
        enabled: true,
        getResourceServerInfo: (_ctx, resource) => ({
          audience: resource,
          scope: 'read write',
          accessTokenFormat: 'jwt',
          accessTokenTTL: 600,
          jwt: { sign: { alg: 'RS256' } },
        }),
      },
    },
  };
}
