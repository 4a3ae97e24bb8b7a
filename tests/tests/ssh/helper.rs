//! The agent's own helper in front of stock clients: `interceptor agent run -- ssh …`.

use anyhow::{Context, Result};
use interceptor_tests::bed::{Bed, Spec};
use interceptor_tests::issuer::{Client, State};
use interceptor_tests::net::Place;
use interceptor_tests::paths::program;
use interceptor_tests::proc::Cmd;
use interceptor_tests::robot::Robot;
use interceptor_tests::tokens::{SSH_AUDIENCE, SSH_SCOPE, url};
use serde_json::{Map, Value, json};

use crate::{USER, session};

/// The helper in a robot's account, its key registered at the issuer as a service app's is.
fn helper(bed: &Bed, robot: &Robot) -> Result<Cmd> {
    let key = robot.home.join("agent.key");
    let interceptor = program("interceptor")?;
    let made = robot.run(&interceptor).args(["agent", "key", "--json", "--key"]).arg(&key);
    let made: Value = serde_json::from_str(&bed.at(robot, made).ok()?)?;
    let mut claims = Map::new();
    claims.insert("aud".into(), json!(SSH_AUDIENCE));
    State::open(&bed.dir().join("issuer"))?.register(Client {
        id: "0oa-reporter".into(),
        jwk: Some(made["jwk"].clone()),
        scopes: vec![SSH_SCOPE.into()],
        claims,
        dpop: true,
        ..Client::default()
    })?;
    robot.write(
        "agent.toml",
        format!(
            "issuer = \"{}\"\nclient_id = \"0oa-reporter\"\nkey = {key:?}\nscopes = [\"{SSH_SCOPE}\"]\n\
             users = [\"{USER}\"]\ninsecure_loopback = true\n",
            url()
        ),
    )?;
    let run = robot.run(interceptor).args(["agent", "run", "--settings", "agent.toml", "--"]);
    Ok(bed.at(robot, run))
}

#[test]
fn stock_clients_come_in_by_the_helper_with_nothing_configured() -> Result<()> {
    skip_unless_ssh!();
    let bed = Bed::with(Spec::ssh())?;
    let robot = bed.robot(USER)?.from(Place::Host).host("127.0.0.1");
    // No key of its own: what it has comes from the helper.
    for file in ["id_ecdsa", "id_ecdsa.pub"] {
        std::fs::remove_file(robot.home.join(".ssh").join(file))?;
    }
    bed.sshd()?.put(USER, "readme", "what stands in readme\n")?;
    let run = helper(&bed, &robot)?;
    let ssh = run.clone().args(["ssh", "-o", "BatchMode=yes"]).arg(robot.target());
    let out = ssh.arg("echo by-helper; exit 9").run()?;
    assert_eq!((out.code, &*out.stdout), (Some(9), "by-helper\n"), "{out}");
    let shown = session(&bed, "by-helper")?.to_string();
    assert!(shown.contains("\"way\":\"certificate\"") && shown.contains("\"jkt\""), "{shown}");
    let path = bed.sshd()?.home(USER).join("readme");
    run.clone().args(["scp", "-q", "-B", &robot.remote(path), "got"]).ok()?;
    let got = std::fs::read_to_string(robot.home.join("got")).context("scp")?;
    assert_eq!(got, "what stands in readme\n");
    // Another user than those that the certificate names.
    let other = ["ssh", "-o", "BatchMode=yes", "analyst@127.0.0.1", "true"];
    assert!(!run.args(other).run()?.success());
    Ok(())
}
