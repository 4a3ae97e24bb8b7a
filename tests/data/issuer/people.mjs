// The certified npm `oidc-provider` for people: a page asks who logs in, no password, and the ID
// token says name and groups as Okta's custom authorization servers do. One process is an issuer
// for many consoles, each of its own name.
//
//   node people.mjs NPM_DIRECTORY
//
// Prints its origin when it listens, and ends with whoever started it. It takes:
//   POST /NAME         {"client_id": "…", "client_secret": "…", "redirect_uri": "…",
//                       "people": {"00u1": {"name": "Ann", "groups": ["…"]}}}
//                      makes the issuer /oauth2/NAME
//   POST /NAME/next    the next logins are this person's, without a page; empty: the page
//   POST /NAME/mint    an access token with these claims beside the usual ones

import { createServer } from 'node:http';
import { generateKeyPairSync, randomUUID } from 'node:crypto';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [npm] = process.argv.slice(2);
const load = (path) => import(pathToFileURL(join(npm, 'node_modules', path)));
const { default: Provider } = await load('oidc-provider/lib/index.js');
const { SignJWT } = await load('jose/dist/webapi/index.js');

const { privateKey } = generateKeyPairSync('rsa', { modulusLength: 2048 });
const signing = { ...privateKey.export({ format: 'jwk' }), use: 'sig', alg: 'RS256', kid: 'k1' };
const issuers = new Map();

const account = (asked, id) => asked.people[id] && {
  accountId: id,
  claims: async () => ({ sub: id, name: asked.people[id].name, groups: asked.people[id].groups }),
};

const configuration = (name, asked) => ({
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
  findAccount: (_, id) => account(asked, id),
  features: { devInteractions: { enabled: false } },
  interactions: { url: (_, interaction) => `/${name}/interaction/${interaction.uid}` },
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
});

const body = async (request) => {
  let text = '';
  for await (const piece of request) text += piece;
  return text;
};

async function mint({ issuer, asked }, claims) {
  const now = Math.floor(Date.now() / 1000);
  const all = {
    ver: 1, jti: `AT.${randomUUID()}`, iss: issuer, aud: 'http://nobody', iat: now, exp: now + 300,
    cid: asked.client_id, scp: ['openid', 'groups'], ...claims,
  };
  for (const name of Object.keys(all)) if (all[name] === null) delete all[name];
  return new SignJWT(all).setProtectedHeader({ alg: 'RS256', kid: 'k1' }).sign(privateKey);
}

function add(origin, name, asked) {
  const issuer = `${origin}/oauth2/${name}`;
  const provider = new Provider(issuer, configuration(name, asked));
  provider.on('server_error', (_, error) => console.error(error));
  issuers.set(name, { issuer, asked, provider, callback: provider.callback(), next: '' });
  return issuer;
}

async function interact(one, request, response) {
  const said = request.method === 'POST' ? new URLSearchParams(await body(request)) : null;
  const who = said ? said.get('login') : one.next;
  if (!who) {
    const names = Object.entries(one.asked.people)
      .map(([id, { name }]) => `<button name="login" value="${id}">${name}</button>`);
    response.setHeader('content-type', 'text/html; charset=utf-8');
    response.end(`<!doctype html><title>Log in</title><form method="post">${names.join(' ')}</form>`);
    return;
  }
  await one.provider.interactionFinished(request, response, { login: { accountId: who } });
}

async function answer(origin, request, response) {
  const [, first, second] = request.url.split(/[/?]/);
  const one = issuers.get(first === 'oauth2' ? second : first);
  if (first === 'oauth2' && one) {
    request.originalUrl = request.url;
    request.url = request.url.slice(`/oauth2/${second}`.length) || '/';
    one.callback(request, response);
  } else if (one && second === 'next') {
    one.next = await body(request);
    response.end();
  } else if (one && second === 'mint') {
    response.end(await mint(one, JSON.parse(await body(request))));
  } else if (one && second === 'interaction') {
    await interact(one, request, response);
  } else if (first && !second && request.method === 'POST') {
    response.end(add(origin, first, JSON.parse(await body(request))));
  } else {
    response.writeHead(404).end();
  }
}

const parent = process.ppid;
setInterval(() => { if (process.ppid !== parent) process.exit(); }, 500);
const server = createServer();
server.listen(0, '127.0.0.1', () => {
  const origin = `http://127.0.0.1:${server.address().port}`;
  server.on('request', async (request, response) => {
    try {
      await answer(origin, request, response);
    } catch (error) {
      console.error(error);
      response.writeHead(500).end(String(error));
    }
  });
  console.log(origin);
});
