// The certified npm `oidc-provider` for people: a page asks who logs in, no password, and the ID
// token says name and groups as Okta's custom authorization servers do.
//
//   node people.mjs NPM_DIRECTORY '{"client_id": "…", "client_secret": "…", "redirect_uri": "…",
//                                   "people": {"00u1": {"name": "Ann", "groups": ["…"]}}}'
//
// Prints its issuer when it listens. Beside the provider:
//   POST /next  NAME           the next logins are this person's, without a page; empty: the page
//   POST /mint  CLAIMS         an access token with these claims beside the usual ones

import { createServer } from 'node:http';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [npm, given] = process.argv.slice(2);
const asked = JSON.parse(given);
const load = (path) => import(pathToFileURL(join(npm, 'node_modules', path)));
const { default: Provider } = await load('oidc-provider/lib/index.js');
const { SignJWT } = await load('jose/dist/webapi/index.js');

const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const signing = { ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'RS256', kid: 'k1' };
let next = '';

const account = (id) => asked.people[id] && {
  accountId: id,
  claims: async () => ({ sub: id, name: asked.people[id].name, groups: asked.people[id].groups }),
};

const configuration = {
  clients: [{
    client_id: asked.client_id,
    client_secret: asked.client_secret,
    grant_types: ['authorization_code'],
    response_types: ['code'],
    redirect_uris: [asked.redirect_uri],
    token_endpoint_auth_method: 'client_secret_basic',
  }],
  jwks: { keys: [signing] },
  cookies: { keys: ['only for tests'] },
  scopes: ['openid', 'profile', 'groups'],
  claims: { openid: ['sub'], profile: ['name'], groups: ['groups'] },
  conformIdTokenClaims: false,
  pkce: { required: () => true },
  findAccount: (_, id) => account(id),
  features: { devInteractions: { enabled: false } },
  interactions: { url: (_, interaction) => `/interaction/${interaction.uid}` },
  loadExistingGrant: async ({ oidc }) => {
    const grant = new oidc.provider.Grant({
      accountId: oidc.session.accountId, clientId: oidc.client.clientId,
    });
    grant.addOIDCScope('openid profile groups');
    await grant.save();
    return grant;
  },
  routes: {
    authorization: '/v1/authorize', token: '/v1/token', jwks: '/v1/keys',
    userinfo: '/v1/userinfo', introspection: '/v1/introspect', revocation: '/v1/revoke',
  },
};

const base = '/oauth2/default';
const body = async (request) => {
  let text = '';
  for await (const piece of request) text += piece;
  return text;
};

async function mint(issuer, claims) {
  const now = Math.floor(Date.now() / 1000);
  const all = {
    ver: 1, jti: `AT.${randomUUID()}`, iss: issuer, aud: 'http://nobody', iat: now, exp: now + 300,
    cid: asked.client_id, scp: ['openid', 'groups'], ...claims,
  };
  for (const name of Object.keys(all)) if (all[name] === null) delete all[name];
  return new SignJWT(all).setProtectedHeader({ alg: 'RS256', kid: 'k1' }).sign(privateKey);
}

const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const origin = `http://127.0.0.1:${server.address().port}`;
  const issuer = `${origin}${base}`;
  const provider = new Provider(issuer, configuration);
  provider.on('server_error', (_, error) => console.error(error));
  const callback = provider.callback();

  async function interact(request, response) {
    const said = request.method === 'POST' ? new URLSearchParams(await body(request)) : null;
    const who = said ? said.get('login') : next;
    if (!who) {
      const names = Object.entries(asked.people)
        .map(([id, { name }]) => `<button name="login" value="${id}">${name}</button>`);
      response.setHeader('content-type', 'text/html; charset=utf-8');
      response.end(`<!doctype html><title>Log in</title><form method="post">${names.join(' ')}</form>`);
      return;
    }
    await provider.interactionFinished(request, response, { login: { accountId: who } });
  }

  server.on('request', async (request, response) => {
    try {
      if (request.url === '/next') {
        next = await body(request);
        response.end();
      } else if (request.url === '/mint') {
        response.end(await mint(issuer, JSON.parse(await body(request))));
      } else if (request.url.startsWith('/interaction/')) {
        await interact(request, response);
      } else if (request.url.startsWith(base)) {
        request.originalUrl = request.url;
        request.url = request.url.slice(base.length) || '/';
        callback(request, response);
      } else {
        response.writeHead(404).end();
      }
    } catch (error) {
      console.error(error);
      response.writeHead(500).end(String(error));
    }
  });
  console.log(issuer);
});
