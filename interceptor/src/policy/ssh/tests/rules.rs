//! Rules about SSH, with requests of every class.

use super::{error, exec, judged, set, subject};
use crate::policy::ssh::{self, Destination, FileOp, ForwardKind, SshFacts};
use crate::policy::{Ask, Effect, SqlFacts, StatementClass, Stream};

fn tcp(host: &str, port: u32) -> SshFacts {
    ssh::forward(ForwardKind::Local, Destination::Tcp { host: host.into(), port })
}

/// A request in a few words: `exec ls`, `sftp read /x`, `forward host:1`, `env X`, `shell`.
fn request(short: &str) -> SshFacts {
    let (kind, rest) = short.split_once(' ').unwrap_or((short, ""));
    match kind {
        "exec" => exec(rest),
        "sftp" => {
            let mut words = rest.split(' ');
            let op = FileOp::from_name(words.next().unwrap()).unwrap();
            ssh::sftp(op, &words.map(str::as_bytes).collect::<Vec<_>>())
        }
        "forward" => {
            let (host, port) = rest.rsplit_once(':').unwrap();
            tcp(host, port.parse().unwrap())
        }
        "unix" => ssh::forward(ForwardKind::Local, Destination::Unix(rest.into())),
        "remote" => {
            ssh::forward(ForwardKind::Remote, Destination::Tcp { host: rest.into(), port: 80 })
        }
        "env" => ssh::env(rest),
        "shell" => ssh::shell(),
        "pty" => ssh::pty("xterm"),
        "x11" => ssh::x11(),
        "agent" => ssh::agent_forward(),
        "subsystem" => ssh::subsystem(rest),
        _ => ssh::unknown(rest),
    }
}

/// sshd may forward for a session only what some rule could let it.
#[test]
fn what_no_rule_could_let_through_is_known_beforehand() {
    use ssh::SshClass::{AgentForward, Forward, RemoteForward, X11};
    let may = |rule: &str, class| {
        set(&format!("[[rule]]\nname='a'\n{rule}")).may_let_through(&subject(), class)
    };
    for (rule, could) in [
        ("effect='allow'", &[][..]),
        ("effect='allow'\nrequest='any'", &[]),
        ("effect='allow'\nprograms='ls'", &[]),
        ("effect='allow'\nrequest=['forward','x11']", &[Forward, X11]),
        ("effect='hold'\nrequest='remote-forward'\ndestinations='h:1'", &[RemoteForward]),
        ("effect='deny'\nrequest='agent-forward'", &[]),
        ("effect='allow'\nrequest='agent-forward'", &[AgentForward]),
        ("effect='allow'\nrequest='agent-forward'\nservice='another'", &[]),
        ("effect='allow'\nrequest='agent-forward'\nrole='another'", &[]),
        ("effect='allow'\nstatement='any'", &[]),
    ] {
        for class in [Forward, RemoteForward, X11, AgentForward] {
            assert_eq!(may(rule, class), could.contains(&class), "{rule}: {class}");
        }
    }
}

/// What is drawn or signed can be anything: no mask could look into it.
#[test]
fn a_mask_refuses_x11_and_the_agents_keys() {
    let rules = set("[[rule]]\nname='a'\neffect='allow'\nrequest=['x11','agent-forward']\n\
                     masks=[{kinds=['card'],method='redact'}]");
    for asked in ["x11", "agent"] {
        assert_eq!(judged(&rules, &request(asked)).effect, Effect::Deny, "{asked}");
    }
}

#[test]
fn rules_that_let_through_must_cover_everything() {
    let one = |body: &str| set(&format!("[[rule]]\nname='a'\neffect='allow'\n{body}"));
    for (rules, asked, passes) in [
        // A rule with no key is about what is seen and common.
        ("", "exec ls", true),
        ("", "exec ls >/tmp/x", true),
        ("", "exec $x", false),
        ("", "sftp read /etc/x", true),
        ("", "env LANG", true),
        ("", "env LD_PRELOAD", false),
        ("", "pty", true),
        ("", "subsystem sftp", true),
        ("", "subsystem netconf", false),
        ("", "shell", false),
        ("", "forward h:80", false),
        ("", "remote h", false),
        ("", "x11", false),
        ("", "agent", false),
        ("", "unknown z", false),
        ("request='any'", "shell", false),
        ("request='any'", "exec ls", true),
        ("request='shell'", "shell", true),
        ("request='shell'", "exec ls", false),
        ("request='subsystem'", "subsystem netconf", true),
        ("request='subsystem'", "subsystem sftp", false),
        ("request='sftp'", "subsystem sftp", true),
        ("request='agent-forward'", "agent", true),
        ("request='unknown'", "unknown z", false),
        ("request='unknown'\nunseen=true", "unknown z", true),
        // Programs.
        ("programs='ls'", "exec ls", true),
        ("programs='ls'", "exec ls -l /", true),
        ("programs='ls'", "exec /bin/ls", true),
        ("programs='ls'", "exec /tmp/ls", false),
        ("programs='ls'", "exec ls; id", false),
        ("programs=['ls','id']", "exec ls; id", true),
        ("programs='/opt/x'", "exec /opt/x", true),
        ("programs='/opt/x'", "exec x", false),
        ("programs='/opt/*'", "exec /opt/x", true),
        ("programs='/opt/*'", "exec /opt/../bin/rm", false),
        ("programs='ls'", "shell", false),
        ("programs='ls'", "sftp read /x", false),
        ("programs='ls'", "env LANG", false),
        ("programs='ls'\nrequest='exec'", "exec ls", true),
        ("programs='ls'\nrequest='sftp'", "exec ls", false),
        ("programs='sh'", "exec sh -c ls", false),
        ("programs=['sh','ls']", "exec sh -c ls", true),
        ("programs='ls'", "exec sudo ls", false),
        ("programs=['ls','sudo']", "exec sudo ls", true),
        // Arguments.
        ("programs='ls'\narguments=['-l','/srv/*']", "exec ls -l /srv/x", true),
        ("programs='ls'\narguments=['-l','/srv/*']", "exec ls -la /srv/x", false),
        ("programs='ls'\narguments=['-l','/srv/*']", "exec ls -l $x", false),
        ("programs='ls'\narguments=['*']", "exec ls $x", false),
        ("programs='ls'\narguments=[]", "exec ls", true),
        ("programs='ls'\narguments=[]", "exec ls x", false),
        // Files that a command uses by itself.
        ("programs='ls'", "exec ls >/dev/null", true),
        ("programs='ls'", "exec ls >/tmp/x", false),
        ("programs='ls'", "exec ls >>x", false),
        ("programs='cat'", "exec cat </etc/passwd", true),
        ("programs='cat'\narguments='/tmp/*'", "exec cat </etc/passwd", false),
        ("programs='cat'\npaths='/tmp/**'", "exec cat </etc/passwd", false),
        ("programs='ls'\npaths='/tmp/**'", "exec ls >/tmp/x", true),
        ("programs='ls'\npaths='/tmp/*'", "exec ls >/tmp/x/y", false),
        ("programs='ls'\npaths='/tmp/**'\noperations='append'", "exec ls >/tmp/x", false),
        ("programs='ls'\npaths='/tmp/**'\noperations='append'", "exec ls >>/tmp/x", true),
        ("programs='ls'\npaths='**'", "exec ls >x", false),
        ("programs='ls'\npaths='~/**'", "exec ls >x", false),
        ("paths='/tmp/**'", "exec ls", false),
        ("paths='/tmp/**'", "exec ls >/tmp/x", false),
        ("request='exec'", "exec ls >/tmp/x", true),
        // sftp.
        ("request='sftp'", "sftp write /x", true),
        ("paths='/srv/**'", "sftp read /srv/x/y", true),
        ("paths='/srv/**'", "sftp read /etc/x", false),
        ("paths='/srv/**'", "sftp read /srv/../etc/x", false),
        ("paths='/srv/**'", "sftp read srv/x", false),
        ("paths='/srv/**'", "subsystem sftp", true),
        ("paths='/srv/**'\noperations=['read','list']", "sftp read /srv/x", true),
        ("paths='/srv/**'\noperations=['read','list']", "sftp write /srv/x", false),
        ("paths='/srv/**'", "sftp rename /srv/x /srv/y", true),
        ("paths='/srv/**'", "sftp rename /srv/x /etc/y", false),
        ("operations='stat'", "sftp stat /etc/x", true),
        // scp and rsync.
        ("request='scp'", "exec scp -t /srv", true),
        ("request='exec'", "exec scp -t /srv", false),
        ("paths='/srv/**'", "exec scp -t /srv", false),
        ("programs='scp'\npaths='/srv/**'", "exec scp -t /srv", true),
        ("programs='scp'\npaths='/srv/**'", "exec scp -t /etc", false),
        ("programs='scp'\npaths='/srv/**'", "exec scp -f /srv/x", true),
        ("programs='scp'\npaths='/srv/**'\noperations='read'", "exec scp -t /srv", false),
        (
            "programs='rsync'\npaths='/srv/**'",
            "exec rsync --server -logDtpre.iLsfxCIvu . /srv/x",
            true,
        ),
        (
            "programs='rsync'\npaths='/srv/**'",
            "exec rsync --server -logDtpre.iLsfxCIvu . /etc",
            false,
        ),
        (
            "programs='git-upload-pack'\narguments='/srv/git/*'",
            "exec git-upload-pack '/srv/git/x.git'",
            true,
        ),
        (
            "programs='git-upload-pack'\narguments='/srv/git/*'",
            "exec git-upload-pack '/etc'",
            false,
        ),
        // Destinations.
        ("request='forward'", "forward h:80", true),
        ("request='forward'\ndestinations='h:80'", "forward h:80", true),
        ("request='forward'\ndestinations='h:80'", "forward H.:80", true),
        ("request='forward'\ndestinations='h:80'", "forward h:81", false),
        ("request='forward'\ndestinations='10.0.0.0/8:*'", "forward 10.1.2.3:81", true),
        ("request='forward'\ndestinations='10.0.0.0/8:*'", "forward ::ffff:10.1.2.3:81", true),
        ("request='forward'\ndestinations='10.0.0.0/8:*'", "forward h:81", false),
        ("request='forward'\ndestinations='10.0.0.0/8:*'", "forward 10.1:81", false),
        ("request='forward'\ndestinations='*:8000-8999'", "forward h:8080", true),
        ("request='forward'\ndestinations='*:8000-8999'", "forward h:80", false),
        ("request='forward'\ndestinations='unix:/run/app/*'", "unix /run/app/s", true),
        ("request='forward'\ndestinations='unix:/run/app/*'", "unix /run/docker.sock", false),
        ("destinations='h:80'", "forward h:80", false),
        ("request='forward'", "remote h", false),
        ("request='remote-forward'", "remote h", true),
        // Variables.
        ("request='env'\nvariables=['LANG','LC_*']", "env LC_ALL", true),
        ("request='env'\nvariables=['LANG','LC_*']", "env FOO", false),
        ("variables='LD_*'\nrequest='env'", "env LD_PRELOAD", false),
        ("variables='LD_*'\nrequest='env'\nunseen=true", "env LD_PRELOAD", true),
        ("programs='ls'", "exec FOO=1 ls", false),
        ("programs='ls'\nvariables='FOO'", "exec FOO=1 ls", true),
        // What is unseen, and what text says.
        ("request='exec'\nunseen=true", "exec $x", true),
        ("programs='ls'\nunseen=true", "exec $x", false),
        ("programs='vim'\nunseen=true", "exec vim x", true),
        ("programs='ssh'\nunseen=true", "exec ssh host rm x", true),
        ("request='exec'\nunseen=true", "shell", false),
        ("request='exec'\ntext='^ls'", "exec ls", true),
        ("request='exec'\ntext='^ls'", "exec id; ls", false),
        // Exclusions.
        ("programs='*'\nnot={programs='rm'}", "exec ls", true),
        ("programs='*'\nnot={programs='rm'}", "exec ls; rm x", false),
        ("request='exec'\nnot={arguments='-f'}", "exec ls -f", false),
        ("request='exec'\nnot={arguments='-f'}", "exec ls $x", false),
        ("request='sftp'\nnot={paths='/etc/**'}", "sftp read /etc/x", false),
        ("request='sftp'\nnot={paths='/etc/**'}", "sftp read /srv/x", true),
        ("request='sftp'\nnot={paths='/etc/**'}", "sftp read /srv/../x", false),
        // Keys of the other protocol.
        ("statement='select'", "exec ls", false),
        ("tables='x'", "exec ls", false),
        ("not={tables='x'}", "exec ls", false),
    ] {
        let verdict = judged(&one(rules), &request(asked));
        let is = verdict.effect == Effect::Allow;
        assert_eq!(is, passes, "{rules:?} for {asked:?}: {:?}", verdict.rules);
    }
}

#[test]
fn rules_that_deny_fire_for_whatever_may_be_meant() {
    for (rule, asked, fires) in [
        ("programs='rm'", "exec rm x", true),
        ("programs='rm'", "exec /tmp/rm x", true),
        ("programs='rm'", "exec ls | xargs rm", true),
        ("programs='rm'", "exec ls", false),
        ("programs='rm'", "exec $x", true),
        ("programs='/bin/rm'", "exec rm x", true),
        ("programs='/bin/rm'", "exec /opt/rm x", false),
        ("programs='rm'\narguments='-rf'", "exec rm x", false),
        ("programs='rm'\narguments='-rf'", "exec rm -rf x", true),
        ("programs='rm'\narguments='-rf'", "exec rm $x", true),
        ("programs='rm'\narguments='-rf'", "exec rm x; ls -rf", false),
        ("paths='/etc/**'", "exec ls >/etc/x", true),
        ("paths='/etc/**'", "exec ls >$x", true),
        ("paths='/etc/**'", "exec ls >/tmp/x", false),
        ("paths='/etc/**'", "exec ls >x", false),
        ("paths='/etc/**'", "exec cd /etc; ls >x", true),
        ("paths='/etc/**'", "exec ls >/tmp/../etc/x", true),
        ("paths='/etc/**'", "sftp read /etc/x", true),
        ("paths='**/.bashrc'", "exec ls >.bashrc", true),
        ("paths='**/.bashrc'", "exec ls >~/.bashrc", true),
        ("paths='**/.bashrc'", "exec ls >x", false),
        ("paths='~/.bashrc'", "exec ls >.bashrc", true),
        ("paths='~/.bashrc'", "exec ls >./.bashrc", true),
        ("paths='~/.bashrc'", "exec ls >\"$HOME/.bashrc\"", true),
        ("paths='~/.bashrc'", "exec ls >x/.bashrc", false),
        ("paths='~/.bashrc'", "sftp write /home/ann/.bashrc", true),
        ("paths='~/.bashrc'", "sftp write /root/.bashrc", true),
        ("paths='~/.bashrc'", "sftp write .bashrc", true),
        ("paths='~/.ssh/**'", "exec scp -t .", true),
        ("paths='~/.ssh/**'", "exec scp -t .ssh", true),
        ("paths='~/.ssh/**'", "exec scp -t /home/ann/.ssh", true),
        ("paths='~/.ssh/**'", "exec scp -t /home/ann", true),
        ("paths='~/.ssh/**'", "exec scp -t /srv/in", false),
        ("paths='~/.ssh/**'", "exec scp -t in", false),
        ("paths='~/.ssh/**'", "exec rsync --server -logDtpre.iLsfxC . .", true),
        ("paths='~'", "exec scp -t .", true),
        ("paths='~'", "exec scp -t ~", true),
        ("paths='~'", "exec scp -t in", false),
        ("paths='~'", "sftp write /home/ann", true),
        ("paths='~'", "sftp write /home/ann/x", false),
        ("paths='**/.ssh/**'", "exec rsync --server -tre.iLsfxC . /srv/in", true),
        ("paths='**/.ssh/**'\nbelow='anywhere'", "exec rsync --server -tre.iLsfxC . /srv/in", true),
        ("paths='**/.ssh/**'\nbelow='home'", "exec rsync --server -tre.iLsfxC . /srv/in", false),
        ("paths='**/.ssh/**'\nbelow='home'", "exec rsync --server -tre.iLsfxC . /srv/.ssh", true),
        ("paths='**/.ssh/**'\nbelow='home'", "exec rsync --server -tre.iLsfxC . /srv/.ssh/x", true),
        ("paths='**/.ssh/**'\nbelow='home'", "exec rsync --server -tre.iLsfxC . /home/ann", true),
        ("paths='**/.ssh/**'\nbelow='home'", "exec rsync --server -tre.iLsfxC . /home", true),
        ("paths='**/.ssh/**'\nbelow='home'", "exec rsync --server -tre.iLsfxC . /", true),
        (
            "paths='**/.ssh/**'\nbelow='home'",
            "exec rsync --server -tre.iLsfxC . /home/ann/in",
            false,
        ),
        ("paths='/srv/*/x'\nbelow='home'", "exec rsync --server -tre.iLsfxC . /srv", true),
        ("operations='link'", "exec rsync --server -logDtpre.iLsfxC . in", true),
        ("operations='link'", "exec rsync --server -logDtpre.iLsfxC --munge-links . in", false),
        ("operations='link'", "exec rsync --server -ogDtpre.iLsfxC . in", false),
        ("operations='link'", "exec rsync --server --sender -logDtpre.iLsfxC . in", false),
        ("paths='/etc/**'\noperations='write'", "sftp read /etc/x", false),
        ("paths='/etc/**'\noperations='rename'", "sftp rename /tmp/x /etc/x", true),
        ("request='exec'", "exec ls", true),
        ("request='exec'", "exec scp -t x", true),
        ("request='scp'", "exec scp -t x", true),
        ("request='scp'", "exec ls", false),
        ("request='any'", "shell", true),
        ("destinations='127.0.0.0/8:*'", "forward 127.0.0.1:5432", true),
        ("destinations='127.0.0.0/8:*'", "forward localhost:5432", true),
        ("destinations='127.0.0.0/8:*'", "forward 2130706433:5432", true),
        ("destinations='127.0.0.0/8:*'", "forward 0x7f.1:5432", true),
        ("destinations='127.0.0.0/8:*'", "forward 10.0.0.1:5432", false),
        ("destinations='localhost:*'", "forward 127.0.0.1:1", true),
        ("variables='PATH'", "exec PATH=/tmp ls", true),
        ("variables='FOO'", "exec FOO=1 ls", true),
        ("unseen=true", "exec $x", true),
        ("unseen=true", "exec ls", false),
        ("not={programs='ls'}", "exec ls", false),
        ("not={programs='ls'}", "exec id", true),
        ("not={programs='ls'}", "exec ls; id", true),
        ("not={programs='ls'}", "exec $x", true),
        ("not={request='exec'}", "exec ls", false),
        ("not={request='exec'}", "exec $x", true),
        ("not={request='exec'}", "sftp read /x", true),
        ("not={paths='/srv/**'}\nrequest='sftp'", "sftp read /srv/x", false),
        ("not={paths='/srv/**'}\nrequest='sftp'", "sftp read /etc/x", true),
        ("tables='x'", "exec ls", false),
    ] {
        let rules = set(&format!("[[rule]]\nname='d'\neffect='deny'\n{rule}"));
        let verdict = judged(&rules, &request(asked));
        let is = verdict.rules.iter().any(|r| r.rule == "d");
        assert_eq!(is, fires, "{rule:?} for {asked:?}: {:?}", verdict.rules);
    }
}

#[test]
fn several_rules_share_a_command_and_the_stricter_wins() {
    let rules = set("[[rule]]\nname='ls'\neffect='allow'\nprograms='ls'\n\
         [[rule]]\nname='wc'\neffect='allow'\nprograms='wc'\n\
         [[rule]]\nname='restart'\neffect='hold'\nprograms='systemctl'\narguments=['restart','app']\n\
         [[rule]]\nname='no-sudo'\neffect='deny'\nprograms='sudo'\nmessage='no'");
    for (command, effect, rule) in [
        ("ls | wc", Effect::Allow, "ls"),
        ("ls | wc | sort", Effect::Deny, "default-deny"),
        ("systemctl restart app", Effect::Hold, "restart"),
        ("ls; systemctl restart app", Effect::Hold, "restart"),
        ("systemctl restart other", Effect::Deny, "default-deny"),
        ("systemctl restart app; reboot", Effect::Deny, "default-deny"),
        ("sudo ls", Effect::Deny, "no-sudo"),
        ("sh -c 'sudo ls'", Effect::Deny, "no-sudo"),
    ] {
        let verdict = judged(&rules, &exec(command));
        assert_eq!((verdict.effect, verdict.deciding_rule()), (effect, rule), "{command}");
    }
}

#[test]
fn masks_refuse_or_hold_what_is_no_text() {
    let policy = |binary: &str, allow: &str| {
        set(&format!(
            "[[rule]]\nname='a'\neffect='allow'\nrequest=['any','forward','subsystem']\n{allow}\n\
             [[rule]]\nname='m'\nmasks=[{{kinds='card',method='redact'{binary}}}]"
        ))
    };
    let masked = |v: &crate::policy::Verdict| match v.stream {
        Stream::Plain => "plain",
        Stream::Masked => "masked",
        Stream::Unmasked { .. } => "unmasked",
    };
    for (binary, allow, asked, effect, stream) in [
        ("", "", "exec ls", Effect::Allow, "masked"),
        ("", "", "exec tar cf - x", Effect::Deny, "unmasked"),
        ("", "", "exec git-upload-pack 'x'", Effect::Deny, "unmasked"),
        ("", "", "exec scp -f x", Effect::Deny, "unmasked"),
        ("", "", "forward h:80", Effect::Deny, "unmasked"),
        ("", "", "subsystem netconf", Effect::Deny, "unmasked"),
        ("", "", "subsystem sftp", Effect::Allow, "plain"),
        ("", "", "env LANG", Effect::Allow, "plain"),
        ("", "", "pty", Effect::Allow, "plain"),
        (",binary='hold'", "", "exec tar cf - x", Effect::Hold, "unmasked"),
        (",binary='deny'", "", "exec tar cf - x", Effect::Deny, "unmasked"),
        (",binary='hold'", "", "exec ls", Effect::Allow, "masked"),
        ("", "binary=true", "exec ls", Effect::Deny, "unmasked"),
        (",binary='hold'", "binary=true", "exec ls", Effect::Hold, "unmasked"),
    ] {
        let verdict = judged(&policy(binary, allow), &request(asked));
        assert_eq!(
            (verdict.effect, masked(&verdict)),
            (effect, stream),
            "{binary} {allow} {asked}: {:?}",
            verdict.rules
        );
        assert_eq!(verdict.hold.is_some(), effect == Effect::Hold, "{asked}");
        if effect != Effect::Allow {
            assert_eq!(verdict.deciding_rule(), "m");
        }
    }
    // A mask about some requests is about what cannot be seen too.
    let some = set(
        "[[rule]]\nname='a'\neffect='allow'\nunseen=true\n[[rule]]\nname='m'\nprograms='psql'\nmasks=[{kinds='card',method='redact'}]",
    );
    assert_eq!(judged(&some, &exec("ls")).stream, Stream::Plain);
    assert_eq!(judged(&some, &exec("psql -c x")).stream, Stream::Masked);
    assert_eq!(judged(&some, &exec("$x")).stream, Stream::Masked);
    // Columns mean nothing to a stream.
    let columns = set(
        "[[rule]]\nname='a'\neffect='allow'\n[[rule]]\nname='m'\nmasks=[{columns='t.c',method='hash'}]",
    );
    assert_eq!(judged(&columns, &exec("tar c x")).stream, Stream::Plain);
}

#[test]
fn neither_protocols_rules_reach_the_other() {
    let rules = set(
        "[[rule]]\nname='a'\neffect='allow'\nrequest='any'\n[[rule]]\nname='d'\neffect='deny'\nprograms='*'",
    );
    let facts = SqlFacts { class: StatementClass::Select, ..SqlFacts::default() };
    let verdict = rules.judge(&subject(), &Ask::Sql(&facts), super::now());
    assert_eq!(verdict.deciding_rule(), "default-deny");
    assert!(verdict.rules.iter().all(|r| r.rule != "d"));
    let both = set("[[rule]]\nname='a'\neffect='allow'");
    assert_eq!(both.judge(&subject(), &Ask::Sql(&facts), super::now()).effect, Effect::Allow);
    assert_eq!(judged(&both, &exec("ls")).effect, Effect::Allow);
}

#[test]
fn rules_that_make_no_sense_are_refused() {
    let rule = |body: &str| error(&format!("[[rule]]\nname='r'\neffect='allow'\n{body}"));
    for (body, says) in [
        ("request='exce'", "no class of requests"),
        ("request=[]", "matches nothing"),
        ("operations='rad'", "no operation"),
        ("paths='x'", "begin it with"),
        ("paths='/x['", "no glob"),
        ("paths='/x'\nbelow='home'", "denies or holds"),
        ("paths='/x'\nnot={below='home'}", "below"),
        ("programs='bin/x'", "a path from /"),
        ("destinations='h'", "host:port"),
        ("destinations='h:x'", "no port"),
        ("destinations='1.2.3.4/99:80'", "no network"),
        ("programs='x'\ntables='y'", "about SQL"),
        ("programs='x'\nnot={tables='y'}", "about SQL"),
        ("binary='x'", "true or false"),
        ("on='connect'\nprograms='x'", "sees no statement"),
        ("binary=true\ntables='x'", "SSH"),
        ("masks=[{columns='a.b',method='hash',binary='hold'}]", "kinds"),
        ("masks=[{kinds='card',method='hash',binary='x'}]", "hold"),
        ("unseen=true\nnot={programs='x'}", "cannot be excluded"),
    ] {
        assert!(rule(body).contains(says), "{body}: {}", rule(body));
    }
    assert!(error("[[rule]]\nname='r'\neffect='deny'\nbinary=true").contains("allow"));
    let deny = |body: &str| error(&format!("[[rule]]\nname='r'\neffect='deny'\n{body}"));
    assert!(deny("below='home'").contains("goes with `paths`"));
    assert!(deny("paths='/x'\nbelow='here'").contains("anywhere"));
    assert!(
        error("[[rule]]\nname='r'\nmasks=[{columns='a.b',method='hash'}]\nprograms='x'")
            .contains("every request")
    );
}

#[test]
fn warnings_and_explanations_speak_of_ssh() {
    let warned = |body: &str| {
        let set = set(&format!(
            "[[rule]]\nname='r'\neffect='allow'\n{body}\n[[rule]]\nname='c'\non='connect'\neffect='allow'"
        ));
        set.warnings(&[], &[]).iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    for (body, says) in [
        ("programs='python3'", "arguments"),
        ("request='exec'\ntext='^ls'", "by text alone"),
        ("paths='~/x'", "never allows"),
        ("request='shell'", "a shell"),
        ("request='forward'", "everywhere"),
        ("destinations='h:80'", "add request"),
        ("programs='ls'\nunseen=true", "add `request`"),
    ] {
        assert!(warned(body).contains(says), "{body}: {}", warned(body));
    }
    assert_eq!(warned("programs='ls'"), "");
    let rules = set(
        "[[rule]]\nname='r'\neffect='allow'\nprograms='ls'\n[[rule]]\nname='s'\neffect='allow'\ntables='x'\n[[rule]]\nname='d'\neffect='deny'\nprograms='rm'",
    );
    let facts = exec("ls; id");
    let explained = rules.explain(&subject(), &Ask::Ssh(&facts), super::now());
    assert!(explained.verdict.rules[0].why.contains("running id"), "{:?}", explained.verdict.rules);
    let why = |name: &str| explained.rules.iter().find(|n| n.rule == name).unwrap().why.clone();
    assert_eq!(why("s"), "is about SQL");
    assert!(why("d").contains("programs"));
}

#[test]
fn paths_seen_from_a_known_home_directory_are_absolute() {
    let home = crate::policy::ssh::Home::new("/srv/people/ann").unwrap().also("/data/ann");
    let verdict = |effect: &str, body: &str, asked: &str| {
        let mut facts = request(asked);
        facts.at_home(&home);
        judged(&set(&format!("[[rule]]\nname='r'\neffect='{effect}'\n{body}")), &facts)
    };
    for (paths, asked, passes) in [
        ("paths='/srv/people/ann/in/**'", "exec ls >in/x", true),
        ("paths='/srv/people/ann/in/**'", "exec ls >~/in/x", true),
        ("paths='/srv/people/ann/in/**'", "exec ls >x", false),
        ("paths='/srv/people/ann/in/**'", "exec cd /; ls >in/x", false),
        ("paths='/srv/people/ann/in/**'", "exec cd /; ls >~/in/x", true),
        ("paths='/srv/people/ann/in/**'", "exec sudo sh -c 'ls >~/in/x'", false),
        ("paths='/srv/people/ann/in/**'", "exec ls >in/../x", false),
        ("paths='/srv/people/ann/**'", "exec cd in; ls >'~/x'", false),
        ("paths='/srv/people/ann/in/**'", "exec scp -t in/x", true),
        ("paths='/srv/people/ann/in/**'", "exec scp -t x", false),
        // git reads a `~` itself, quoted or not.
        ("paths='/srv/people/ann/**'", "exec git-upload-pack '~/x.git'", true),
        ("paths='/srv/people/ann/**'", "exec git-upload-pack 'x.git'", true),
        ("paths='/srv/people/ann/**'", "exec git-upload-pack '~eve/x.git'", false),
        ("paths='/srv/people/ann/**'", "exec git-receive-pack '~eve/x.git'", false),
    ] {
        let verdict = verdict("allow", &format!("programs='*'\n{paths}"), asked);
        assert_eq!(verdict.effect == Effect::Allow, passes, "{paths} for {asked}");
    }
    for (paths, asked, is) in [
        ("paths='~/.x'", "exec ls >.x", true),
        ("paths='~/.x'", "exec ls >/srv/people/ann/.x", true),
        ("paths='~/.x'", "exec ls >/data/ann/.x", true),
        ("paths='~/.x'", "sftp write /data/ann/.x", true),
        ("paths='~/.x'", "sftp write /data/bob/.x", false),
        ("paths='~/.x'", "sftp write /home/bob/.x", true),
        ("paths='~/.x'", "exec rsync --server -te.iLsfxC . /data", true),
        ("paths='~/.x'", "exec rsync --server -te.iLsfxC . /data/ann/in", false),
        ("paths='**/.x'\nbelow='home'", "exec rsync --server -te.iLsfxC . /data/ann", true),
        ("paths='**/.x'\nbelow='home'", "exec rsync --server -te.iLsfxC . /data/ann/in", false),
        ("paths='/srv/people/ann/x.git/**'", "exec git-upload-pack '~/x.git'", true),
        // git opens x.git where it is asked for x.
        ("paths='/srv/git/x.git/**'", "exec git-upload-pack '/srv/git/x/.'", true),
        ("paths='/srv/git/x.git/**'", "exec git-receive-pack '/srv/git/x'", true),
        ("paths='/srv/git/x.git/**'", "exec git-receive-pack '/srv/git/y'", false),
        // The other name of a home directory that is a link.
        ("paths='/data/ann/secret/**'", "exec cat <secret/x", true),
        ("paths='/data/ann/secret/**'", "exec scp -f secret/x", true),
        ("paths='/data/ann/secret/**'", "exec cat <open/x", false),
        // What is unseen may go elsewhere first.
        ("paths='**/in/**'", "exec ls >x", false),
        ("paths='**/in/**'", "exec $y; ls >x", true),
    ] {
        let fires = verdict("deny", paths, asked).rules.iter().any(|r| r.rule == "r");
        assert_eq!(fires, is, "{paths} for {asked}");
    }
}
