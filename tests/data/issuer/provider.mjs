// The certified npm `oidc-provider`, shaped as an Okta custom authorization server: issuer
// http://127.0.0.1:PORT/oauth2/default, JWT access tokens with `cid`, `scp` and one audience,
// private_key_jwt, and DPoP with a nonce that is always demanded.
//
//   node provider.mjs NPM_DIRECTORY '{"client_id": "…", "jwk": {…}, "audience": "…", "scope": "…", "lifetime": 300}'
//
// Prints its issuer when it listens, and then a line for every token it gives.

import { createServer } from 'node:http';
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [npm, given] = process.argv.slice(2);
const asked = JSON.parse(given);
const entry = pathToFileURL(join(npm, 'node_modules/oidc-provider/lib/index.js'));
const { default: Provider } = await import(entry);

const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const signing = { ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'RS256', kid: 'k1' };

const configuration = (issuer) => ({
  clients: [{
    client_id: asked.client_id,
    token_endpoint_auth_method: 'private_key_jwt',
    token_endpoint_auth_signing_alg: asked.jwk.kty === 'RSA' ? 'RS256' : 'ES256',
    grant_types: ['client_credentials'],
    response_types: [],
    redirect_uris: [],
    dpop_bound_access_tokens: true,
    jwks: { keys: [asked.jwk] },
    scope: asked.scope,
  }],
  jwks: { keys: [signing] },
  scopes: [asked.scope],
  enabledJWA: {
    clientAuthSigningAlgValues: ['RS256', 'ES256'],
    dPoPSigningAlgValues: ['RS256', 'ES256'],
  },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    dPoP: { enabled: true, nonceSecret: randomBytes(32), requireNonce: () => true },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => asked.audience,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({
        scope: asked.scope,
        audience: asked.audience,
        accessTokenTTL: asked.lifetime,
        accessTokenFormat: 'jwt',
        jwt: { sign: { alg: 'RS256' } },
      }),
    },
  },
  formats: {
    customizers: {
      jwt: (ctx, token, { header, payload }) => {
        const { scope, client_id, jti, ...rest } = payload;
        console.log(`token ${jti}`);
        return {
          header,
          payload: {
            ...rest, ver: 1, jti: `AT.${jti}`, cid: client_id, scp: scope.split(' '),
          },
        };
      },
    },
  },
  routes: {
    authorization: '/v1/authorize', token: '/v1/token', jwks: '/v1/keys',
    introspection: '/v1/introspect', revocation: '/v1/revoke', userinfo: '/v1/userinfo',
  },
});

const base = '/oauth2/default';
const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const issuer = `http://127.0.0.1:${server.address().port}${base}`;
  const provider = new Provider(issuer, configuration(issuer));
  provider.on('server_error', (_, error) => console.error(error));
  const callback = provider.callback();
  server.on('request', (request, response) => {
    request.originalUrl = request.url;
    if (!request.url.startsWith(base)) {
      response.writeHead(404).end();
      return;
    }
    request.url = request.url.slice(base.length) || '/';
    callback(request, response);
  });
  console.log(issuer);
});
