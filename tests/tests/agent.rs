//! The agent's helper against real parts: issuers that demand DPoP with a nonce, the stock tools
//! of OpenSSH at its socket, and the checks of the daemon on what it carries.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use interceptor::agent::settings::{Audience, Given};
use interceptor::agent::{AgentKey, Grant, GrantError, Keeper, Kind};
use interceptor::config::Config;
use interceptor::identity::{
    CERTIFICATE_EXTENSION, Identity, Presented, Proven, ProvenKey, Refusal, Source,
};
use interceptor_tests::bed::{installed, skipped};
use interceptor_tests::issuer::{Client, Issuer, Options};
use interceptor_tests::paths::program;
use interceptor_tests::proc::{Cmd, Output, wait_for};
use interceptor_tests::provider::{Provider, Spec};
use nix::sys::signal::Signal;
use secrecy::ExposeSecret;
use serde_json::{Value, json};

const CLIENT: &str = "0oa1machine";

/// An agent's directory with its key, and what it is told.
struct Agent {
    dir: tempfile::TempDir,
    key: AgentKey,
    given: Given,
}

impl Agent {
    fn new(kind: Kind) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.key");
        let key = AgentKey::create(&file, kind).unwrap();
        let given = Given {
            client_id: Some(CLIENT.into()),
            key: Some(file),
            scopes: Some(vec!["ssh".into()]),
            users: Some(vec!["deploy".into(), "backup".into()]),
            insecure_loopback: Some(true),
            ..Given::default()
        };
        Self { dir, key, given }
    }

    fn jwk(&self) -> Value {
        let mut jwk = json!(self.key.jwk());
        jwk["kid"] = json!(self.key.jkt());
        jwk["use"] = json!("sig");
        jwk["alg"] = json!(if jwk["kty"] == "EC" { "ES256" } else { "RS256" });
        jwk
    }

    fn client(&self, lifetime: i64) -> Client {
        Client {
            id: CLIENT.into(),
            jwk: Some(self.jwk()),
            scopes: vec!["ssh".into()],
            lifetime: Some(lifetime),
            dpop: true,
            ..Client::default()
        }
    }

    async fn issuer(&mut self, lifetime: i64) -> Issuer {
        let clients = vec![self.client(lifetime)];
        let issuer = Issuer::start(Options { clients, ..Options::default() }).await.unwrap();
        self.given.issuer = Some(issuer.url());
        issuer
    }

    fn helper(&self) -> interceptor::agent::Issuer {
        let settings = self.given.clone().complete().unwrap();
        interceptor::agent::Issuer::new(settings).unwrap()
    }

    /// `interceptor agent VERB`, with its settings in a file.
    fn command(&self, verb: &str) -> Cmd {
        let g = &self.given;
        let text = format!(
            "issuer = {:?}\nclient_id = {CLIENT:?}\nkey = {:?}\nscopes = [\"ssh\"]\n\
             users = [\"deploy\", \"backup\"]\ninsecure_loopback = true\n",
            g.issuer.as_deref().unwrap_or_default(),
            g.key.as_ref().unwrap(),
        );
        let file = self.dir.path().join("agent.toml");
        std::fs::write(&file, text).unwrap();
        Cmd::new(program("interceptor").unwrap())
            .clear_env()
            .env("HOME", self.dir.path())
            .env("TMPDIR", self.dir.path())
            .args(["agent", verb, "--settings"])
            .arg(file)
    }

    /// Sockets and directories of agents that were left behind.
    fn left_behind(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir.path()).unwrap().flatten();
        entries
            .map(|e| e.path())
            .filter(|p| p.to_string_lossy().contains("interceptor-agent-"))
            .collect()
    }
}

/// What a protected host says of the token in a certificate.
async fn prove(issuer: &str, dir: &Path, token: &str, key: &AgentKey) -> Result<Proven, Refusal> {
    let file = dir.join("interceptor.toml");
    let text = format!(
        "[paths]\nstate = {:?}\n\
         [[issuer]]\nname = 'okta'\nurl = '{issuer}'\ninsecure_loopback = true\n\
         [[agent]]\nname = 'bot'\nissuer = 'okta'\ncid = '{CLIENT}'\n\
         [[service]]\nname = 'host-ssh'\nprotocol = 'ssh'\nport = 22\n\
         audience = 'api://default'\nscope = 'ssh'\nupstream = {{ host = '127.0.0.1', port = 22 }}\n",
        dir.join("state")
    );
    std::fs::write(&file, text).unwrap();
    let config = Config::load(&file).unwrap();
    let identity = Identity::open(&config).await.unwrap();
    let source = Source { addr: "203.0.113.7".parse().unwrap(), uid: None };
    let presented = Presented {
        token: token.as_bytes(),
        service: &config.services[0],
        source,
        client_key: Some(ProvenKey::Ssh(key.public())),
        now: SystemTime::now(),
    };
    identity.prove(presented).await
}

#[tokio::test]
async fn a_token_is_bound_to_the_key_and_carried_by_a_certificate() {
    for kind in [Kind::P256, Kind::Rsa] {
        let mut agent = Agent::new(kind);
        let issuer = agent.issuer(300).await;
        let helper = Arc::new(agent.helper());
        let keeper = Keeper::start(helper.clone(), Duration::ZERO).await.unwrap();
        let credential = keeper.current().borrow().clone().unwrap();
        let certificate = &credential.certificate;
        assert_eq!(certificate.valid_principals(), ["deploy", "backup"]);
        let token = &certificate.extensions()[CERTIFICATE_EXTENSION];
        assert_eq!(token, credential.grant.token.expose_secret());
        let exp = credential.grant.claims["exp"].as_u64().unwrap();
        assert_eq!(certificate.valid_before(), exp, "no longer than the token");
        let proven = prove(&issuer.url(), agent.dir.path(), token, &agent.key).await.unwrap();
        assert_eq!(proven.agent().name, "bot");
        let other = Agent::new(Kind::P256);
        let refused = prove(&issuer.url(), other.dir.path(), token, &other.key).await;
        assert_eq!(refused.unwrap_err().code.as_str(), "TOKEN_PROOF_REQUIRED");
        // The nonce that came last is used next time; when it is old, the new one is.
        helper.grant(true).await.unwrap();
        issuer.rotate_nonce();
        helper.grant(true).await.unwrap();
    }
}

#[tokio::test]
async fn what_the_issuer_refuses_is_said_and_not_repeated() {
    let mut agent = Agent::new(Kind::P256);
    let issuer = agent.issuer(300).await;
    let error = |given: Given| async move {
        let helper = interceptor::agent::Issuer::new(given.complete().unwrap()).unwrap();
        helper.grant(true).await.map(|_: Grant| ()).unwrap_err()
    };
    let with = |change: fn(&mut Given)| {
        let mut given = agent.given.clone();
        change(&mut given);
        given
    };
    for (change, says) in [
        ((|g| g.client_id = Some("0oa9".into())) as fn(&mut Given), "invalid_client"),
        (|g| g.scopes = Some(vec!["root".into()]), "invalid_scope"),
        (|g| g.key_id = Some("other".into()), "invalid_client"),
    ] {
        let error = error(with(change)).await;
        assert!(!error.may_pass() && error.to_string().contains(says), "{error}");
    }
    let moved = with(|g| g.issuer = g.issuer.take().map(|i| i.replace("127.0.0.1", "localhost")));
    let error = error(moved).await;
    assert!(error.to_string().contains("calls itself"), "{error}");
    issuer.set_down(true);
    let error = agent.helper().grant(true).await.unwrap_err();
    assert!(matches!(error, GrantError::Issuer { .. }) && error.may_pass(), "{error}");
    issuer.set_down(false);
    // A client whose tokens are not bound gets none that would pass for one.
    issuer.register(Client {
        claims: json!({"cnf": {"jkt": "x"}}).as_object().unwrap().clone(),
        ..agent.client(300)
    });
    let error = agent.helper().grant(true).await.unwrap_err();
    assert!(error.to_string().contains("not bound"), "{error}");
}

#[tokio::test]
async fn a_certificate_is_renewed_in_time_and_withdrawn_when_it_ends() {
    let mut agent = Agent::new(Kind::P256);
    let issuer = agent.issuer(4).await;
    let keeper = Keeper::start(Arc::new(agent.helper()), Duration::ZERO).await.unwrap();
    let mut current = keeper.current();
    let first = current.borrow_and_update().clone().unwrap();
    let task = tokio::spawn(keeper.run());
    let patience = Duration::from_secs(10);
    let next = tokio::time::timeout(patience, current.changed());
    next.await.unwrap().unwrap();
    let second = current.borrow_and_update().clone().unwrap();
    assert_ne!(first.grant.token.expose_secret(), second.grant.token.expose_secret());
    assert!(SystemTime::now() < first.grant.expires_at, "before the old one ended");
    issuer.set_down(true);
    let gone = tokio::time::timeout(patience, current.wait_for(Option::is_none));
    gone.await.unwrap().unwrap();
    assert!(SystemTime::now() >= second.grant.expires_at);
    issuer.set_down(false);
    let back = tokio::time::timeout(patience, current.wait_for(Option::is_some));
    back.await.unwrap().unwrap();
    task.abort();
}

#[tokio::test]
async fn the_certified_provider_gives_what_the_host_takes() -> Result<()> {
    if let Some(why) = Provider::absent() {
        skipped(&why);
        return Ok(());
    }
    for kind in [Kind::P256, Kind::Rsa] {
        let mut agent = Agent::new(kind);
        let spec = Spec {
            client_id: CLIENT.into(),
            jwk: agent.jwk(),
            audience: "api://default".into(),
            scope: "ssh".into(),
            lifetime: 300,
        };
        let provider = Provider::start(agent.dir.path(), &spec)?;
        agent.given.issuer = Some(provider.url().into());
        agent.given.audience = Some(Audience::Issuer);
        let keeper = Keeper::start(Arc::new(agent.helper()), Duration::ZERO).await?;
        let credential = keeper.current().borrow().clone().unwrap();
        let token = &credential.certificate.extensions()[CERTIFICATE_EXTENSION];
        let proven = prove(provider.url(), agent.dir.path(), token, &agent.key).await.unwrap();
        assert_eq!(proven.claims().cid.as_deref(), Some(CLIENT));
        assert!(proven.claims().cnf && proven.claims().pop.as_deref() == Some(agent.key.jkt()));
        assert_eq!(provider.tokens(), 1, "one call without a nonce, one with");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_tools_see_the_certificate_through_the_socket() -> Result<()> {
    let mut agent = Agent::new(Kind::P256);
    let _issuer = agent.issuer(300).await;
    let dir = agent.dir.path().to_owned();
    let run = |args: &[&str]| agent.command("run").arg("--").args(args).run();
    let listed = run(&["ssh-add", "-l"])?.ok()?;
    assert!(listed.contains("(ECDSA-CERT)") && listed.lines().count() == 1, "{listed}");
    let full = run(&["ssh-add", "-L"])?.ok()?;
    std::fs::write(dir.join("cert.pub"), &full)?;
    let shown = Cmd::new("ssh-keygen").args(["-L", "-f"]).arg(dir.join("cert.pub")).ok()?;
    for want in
        ["user certificate", "Signing CA: ECDSA SHA256:", "deploy", "backup", CERTIFICATE_EXTENSION]
    {
        assert!(shown.contains(want), "{want} in\n{shown}");
    }
    let both = agent.command("run").arg("--plain-key").arg("--").args(["ssh-add", "-l"]).ok()?;
    assert_eq!(both.lines().count(), 2, "{both}");
    assert!(both.lines().next().unwrap().contains("CERT"), "the certificate first: {both}");
    // It holds nothing but its own key, and signs nothing but logins.
    std::fs::write(dir.join("text"), "text")?;
    let key = dir.join("agent.key");
    let script = format!(
        "ssh-keygen -y -f {0} > {0}.pub; ssh-keygen -Y sign -n file -f {0}.pub text; \
         ssh-add {0}; ssh-add -D; ssh-add -x < /dev/null",
        key.display()
    );
    let tried = agent.command("run").arg("--plain-key").args(["--", "sh", "-c", &script]).dir(&dir);
    let tried = tried.run()?;
    assert!(!dir.join("text.sig").exists(), "{tried}");
    assert!(!tried.success() && tried.all().contains("agent refused operation"), "{tried}");
    assert!(agent.left_behind().is_empty(), "{:?}", agent.left_behind());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_login_with_untouched_configuration_uses_the_certificate() -> Result<()> {
    if !Path::new("/usr/sbin/sshd").exists() || !installed("ssh") {
        skipped("no sshd: run `cargo xtask setup`");
        return Ok(());
    }
    for kind in [Kind::P256, Kind::Rsa] {
        let mut agent = Agent::new(kind);
        let _issuer = agent.issuer(300).await;
        let user = nix::unistd::User::from_uid(nix::unistd::geteuid())?.unwrap().name;
        let server = Sshd::start(&agent, &user)?;
        let ssh = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"];
        let known = format!("UserKnownHostsFile={}", agent.dir.path().join("known").display());
        let (port, host) = (server.port.to_string(), format!("{user}@127.0.0.1"));
        let login = agent
            .command("run")
            .args(["--user", &user, "--"])
            .args(ssh)
            .args(["-o", &known, "-p", &port, &host, "echo in; exit 3"])
            .run()?;
        assert_eq!(
            (login.code, login.stdout.as_str()),
            (Some(3), "in\n"),
            "{login}\n{}",
            server.log()
        );
        assert!(server.log().contains(&format!("ID {CLIENT}")), "{}", server.log());
    }
    Ok(())
}

/// Debian's sshd that trusts the agent's own key as an authority.
struct Sshd {
    port: u16,
    process: interceptor_tests::proc::Daemon,
}

impl Sshd {
    fn start(agent: &Agent, user: &str) -> Result<Self> {
        let dir = agent.dir.path();
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        std::fs::write(dir.join("ca.pub"), agent.key.public().to_openssh()?)?;
        Cmd::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(dir.join("host"))
            .ok()?;
        let config = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {d}/host\nPidFile none\nUsePAM no\n\
             TrustedUserCAKeys {d}/ca.pub\nAuthorizedKeysFile none\nStrictModes no\n\
             PasswordAuthentication no\nLogLevel VERBOSE\nPermitRootLogin yes\nAllowUsers {user}\n",
            d = dir.display()
        );
        std::fs::write(dir.join("sshd_config"), config)?;
        std::fs::create_dir_all("/run/sshd").ok();
        let log = dir.join("sshd.log");
        let mut process = Cmd::new("/usr/sbin/sshd")
            .args(["-D", "-e", "-f"])
            .arg(dir.join("sshd_config"))
            .daemonize(&log)?;
        wait_for("sshd", Duration::from_secs(10), || {
            process.still_runs()?;
            Ok(std::net::TcpStream::connect(("127.0.0.1", port)).ok().map(drop))
        })?;
        Ok(Self { port, process })
    }

    fn log(&self) -> String {
        self.process.log()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commands_end_and_its_signals_are_handed_on() -> Result<()> {
    let mut agent = Agent::new(Kind::P256);
    let _issuer = agent.issuer(300).await;
    let sh = |script: &str| agent.command("run").args(["--", "sh", "-c", script]);
    assert_eq!(sh("exit 7").run()?.code, Some(7));
    assert_eq!(sh("kill -KILL $$").run()?.code, Some(137));
    assert_eq!(agent.command("run").args(["--", "/nowhere"]).run()?.code, Some(1));
    let marker = agent.dir.path().join("marker");
    let script =
        format!("trap 'exit 9' TERM; touch {}; while :; do sleep 0.1; done", marker.display());
    let mut running = sh(&script).daemonize(&agent.dir.path().join("run.log"))?;
    wait_for("the command", Duration::from_secs(20), || Ok(marker.exists().then_some(())))?;
    assert_eq!(agent.left_behind().len(), 1);
    running.signal(Signal::SIGTERM)?;
    wait_for("its end", Duration::from_secs(10), || Ok(running.still_runs().err()))?;
    assert!(agent.left_behind().is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn serving_stands_at_its_path_until_it_is_ended() -> Result<()> {
    let mut agent = Agent::new(Kind::P256);
    let _issuer = agent.issuer(300).await;
    let socket = agent.dir.path().join("a.sock");
    let mut serving = agent
        .command("serve")
        .arg("--json")
        .arg("--socket")
        .arg(&socket)
        .daemonize(&agent.dir.path().join("serve.log"))?;
    let line = wait_for("the socket", Duration::from_secs(20), || {
        serving.still_runs()?;
        Ok(serving.log().lines().find(|l| l.starts_with('{')).map(str::to_owned))
    })?;
    let said: Value = serde_json::from_str(&line)?;
    assert_eq!(said["socket"], json!(socket));
    let listed = Cmd::new("ssh-add").arg("-l").env("SSH_AUTH_SOCK", &socket).ok()?;
    assert!(listed.contains("CERT"), "{listed}");
    let second = agent.command("serve").arg("--socket").arg(&socket).run()?;
    assert!(second.code == Some(1) && second.stderr.contains("another agent"), "{second}");
    serving.stop();
    assert!(!socket.exists());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_keys_are_shown_without_their_secrets() -> Result<()> {
    let mut agent = Agent::new(Kind::P256);
    let issuer = agent.issuer(300).await;
    issuer.register(Client { dpop: false, ..agent.client(300) });
    let raw = |more: &[&str]| agent.command("token").arg("--raw").args(more).ok();
    let bound = raw(&[])?;
    let claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(bound.trim())?;
    assert_eq!(claims["cnf"]["jkt"], json!(agent.key.jkt()));
    let bearer = raw(&["--unbound"])?;
    let claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(bearer.trim())?;
    assert_eq!(claims["cnf"], Value::Null);
    let shown = agent.command("token").arg("--json").ok()?;
    let shown: Value = serde_json::from_str(&shown)?;
    assert_eq!((&shown["bound"], &shown["claims"]["cid"]), (&json!(true), &json!(CLIENT)));
    assert!(!shown.to_string().contains("eyJ"), "no token in it: {shown}");

    let file = agent.dir.path().join("new/agent.key");
    let key = |more: &[&str]| {
        Cmd::new(program("interceptor").unwrap())
            .args(["agent", "key", "--json", "--key"])
            .arg(&file)
            .args(more)
    };
    let made: Value = serde_json::from_str(&key(&[]).ok()?)?;
    assert_eq!(made["jwk"]["kid"], made["thumbprint"]);
    assert!(made["jwk"].get("d").is_none());
    let again = key(&[]).run()?;
    assert_eq!(again.code, Some(1), "{again}");
    let same: Value = serde_json::from_str(&key(&["--show"]).ok()?)?;
    assert_eq!(made, same);
    let public = Cmd::new("ssh-keygen").args(["-y", "-f"]).arg(&file).ok()?;
    assert_eq!(public.trim(), made["ssh"].as_str().unwrap().trim());

    let out: Output = agent.command("token").args(["--client-id", "0oa9"]).run()?;
    assert!(out.code == Some(1) && out.stderr.contains("invalid_client"), "{out}");
    assert!(!out.all().contains("eyJ"), "{out}");
    Ok(())
}
