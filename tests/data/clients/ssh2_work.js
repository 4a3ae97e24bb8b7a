// What ssh2 does with a host: prints one JSON object. argv: the password, or nothing.
const fs = require('fs');
const { Client, utils } = require('ssh2');

const password = process.argv[2] || undefined;
const home = process.env.HOME;
const known = fs.readFileSync(`${home}/.ssh/known_hosts`, 'utf8');
const config = { host: process.env.SSH_HOST, username: process.env.SSH_LOGIN, readyTimeout: 15000,
  hostVerifier: (key) => known.includes(key.toString('base64')) };
if (password) config.password = password;
else config.privateKey = fs.readFileSync(`${home}/.ssh/id_ecdsa`);

const connect = () => new Promise((done, fail) => {
  const c = new Client();
  c.on('ready', () => done(c)).on('error', fail).connect(config);
});
const run = (c, command, stdin) => new Promise((done, fail) => {
  c.exec(command, (e, s) => {
    if (e) return done({ out: '', err: e.message, code: -1 });
    let out = '', err = '', code = null, signal = null;
    s.on('data', (d) => { out += d; }).stderr.on('data', (d) => { err += d; });
    s.on('exit', (n, sig) => { code = n; signal = sig; }).on('close', () => done({ out, err, code, signal }));
    // After its own end of input ssh2 sends no signal any more.
    if (command.endsWith('sleep 50')) s.once('data', () => s.signal('TERM'));
    else s.end(stdin || '');
  });
});

(async () => {
  const c = await connect();
  const out = await run(c, 'echo out; echo err >&2; exit 3');
  delete out.signal;
  out.stdin = (await run(c, 'cat', '12345')).out;
  const denied = await run(c, 'rm readme');
  out.denied = denied.err; out.denied_code = denied.code;
  out.card = (await run(c, 'cat card')).out;
  out.signal = ((await run(c, 'echo runs; sleep 50')).signal || 'none').replace('SIG', '');
  const s = await new Promise((done, fail) => c.sftp((e, s) => (e ? fail(e) : done(s))));
  out.readme = await new Promise((done, fail) => s.readFile('readme', 'utf8', (e, t) => (e ? fail(e) : done(t))));
  await new Promise((done, fail) => s.writeFile('inbox/by-driver', 'by driver\n', (e) => (e ? fail(e) : done())));
  out.sftp_denied = await new Promise((done) => s.writeFile('.bashrc', 'x', (e) => done(!!e)));
  s.end();
  out.next = (await run(c, 'echo next')).out;
  c.end();
  console.log(JSON.stringify(out));
})().catch((e) => { console.error(e); process.exit(1); });
