//! Rules from the centre beside those of a host: nothing that the host denies, holds, masks or
//! limits becomes laxer by them.

use super::*;
use crate::policy::ssh::testing::Asked;
use crate::policy::ssh::{self, Home, LoginShell, ShellAnalyzer};

fn central(text: &str) -> PolicySet {
    PolicySet::central(7, &[source(&source_name(7, "c.toml"), text)]).unwrap()
}

fn refused(text: &str) -> String {
    PolicySet::central(7, &[source(&source_name(7, "c.toml"), text)]).unwrap_err().to_string()
}

#[test]
fn the_centre_allows_what_the_host_leaves_open_and_nothing_that_it_denies_or_holds() {
    let host = set("
        [[rule]]\nname='no-secrets'\neffect='deny'\ntables='secrets'\nmessage='never'
        [[rule]]\nname='hold-orders'\neffect='hold'\nwrites='orders'
        [[rule]]\nname='few'\nlimits={rows=10}\n");
    let both = host.with_central(&central(
        "[[rule]]\nname='all'\neffect='allow'\nstatement='any'\nlimits={rows=1000}\n\
         [[rule]]\nname='no-secrets'\neffect='allow'\nmessage='do'\n\
         [[rule]]\nname='no-b'\neffect='deny'\ntables='b'\n",
    ));
    for (request, alone, with) in [
        ("select r:orders", Effect::Deny, Effect::Allow),
        ("select r:secrets", Effect::Deny, Effect::Deny),
        ("update w:orders", Effect::Hold, Effect::Hold),
        ("update w:other", Effect::Deny, Effect::Allow),
        ("select r:b", Effect::Deny, Effect::Deny),
        ("do !unseen", Effect::Deny, Effect::Deny),
    ] {
        assert_eq!(judged(&host, request).effect, alone, "{request}");
        let verdict = judged(&both, request);
        assert_eq!(verdict.effect, with, "{request}: {:?}", verdict.rules);
        assert_eq!(verdict.limits.rows, Some(10), "{request}");
    }
    let denied = judged(&both, "select r:secrets");
    assert_eq!(
        (denied.rules[0].file.as_str(), denied.message.as_deref()),
        ("p.toml", Some("never"))
    );
    assert!(both.version().starts_with(host.version()) && both.version().ends_with("+central.7"));
    assert_eq!((both.len(), both.central_rules(), both.central_version()), (6, 3, Some(7)));
}

#[test]
fn neither_side_can_keep_the_other_from_being_loaded() {
    let rule = "[[rule]]\nname='same'\neffect='deny'\ntables='a'\n";
    let both = set(rule).with_central(&central(&format!("\n{rule}")));
    let notes = both.explain(&subject(json!({})), &Ask::Sql(&facts("select r:a")), now()).rules;
    let places: Vec<_> = notes.iter().map(|n| (n.file.as_str(), n.line, n.matched)).collect();
    assert_eq!(places, [("p.toml", 1, true), ("central:7/c.toml", 2, true)]);
    let told = both.warnings(&[], &[]);
    assert!(told.iter().any(|w| w.message.contains("central:7/c.toml:2")), "{told:?}");
}

#[test]
fn what_no_deny_of_a_host_could_see_is_not_for_the_centre_to_open() {
    for (body, key) in [
        ("effect='allow'\nunseen=true", "unseen"),
        ("effect='allow'\nstatement=['select','fastpath']", "statement"),
        ("effect='allow'\nstatement='replication'", "statement"),
        ("effect='allow'\nstatement='unknown'", "statement"),
        ("effect='allow'\nrequest='shell'", "request"),
        ("effect='allow'\nrequest=['exec','subsystem']", "request"),
        ("effect='allow'\nrequest='x11'", "request"),
        ("effect='allow'\nrequest='agent-forward'", "request"),
        ("effect='allow'\nrequest='unknown'", "request"),
        ("effect='allow'\nprograms='tar'\nbinary=true", "binary"),
        ("effect='hold'\nprograms='tar'\nbinary=true", "binary"),
    ] {
        let error = refused(&format!("[[rule]]\nname='x'\n{body}\n"));
        let at = format!("central:7/c.toml:1: rule \"x\", {key}: only a host's own file");
        assert!(error.starts_with(&at), "{body}: {error}");
    }
    // It may deny and hold all of that, and a hold of it opens nothing.
    for effect in ["deny", "hold"] {
        let hold = central(&format!("[[rule]]\nname='x'\neffect='{effect}'\nunseen=true\n"));
        assert_eq!(judged(&set("").with_central(&hold), "do !unseen").effect, Effect::Deny);
        let host = set("[[rule]]\nname='own'\neffect='allow'\nstatement='any'\nunseen=true\n");
        let verdict = judged(&host.with_central(&hold), "do !unseen");
        assert_eq!(verdict.effect.as_str(), effect, "{:?}", verdict.rules);
    }
    let bad = refused("[[rule]]\nname='a'\neffect='allow'\nservcie='x'\n");
    assert!(bad.contains("central:7/c.toml:4") && bad.contains("`service`"), "{bad}");
}

#[test]
fn functions_that_could_read_anything_are_for_the_centre_to_name() {
    let host = set("[[rule]]\nname='no-secrets'\neffect='deny'\ntables='secrets'\n");
    for (body, request, passes) in [
        ("", "select f:pg_catalog.lower", true),
        ("", "select f:pg_catalog.set_config", true),
        ("", "select f:pg_catalog.query_to_xml", false),
        ("", "select f:shop.refresh", false),
        ("", "select f:.refresh", false),
        ("functions='pg_catalog.*'", "select f:pg_catalog.query_to_xml", false),
        ("functions='shop.*'", "select f:shop.refresh", false),
        ("functions='shop.refresh'", "select f:shop.refresh", true),
        ("functions='refresh'", "select f:shop.refresh", true),
        ("functions='shop.refresh'", "select f:.refresh", false),
    ] {
        let text = format!("[[rule]]\nname='a'\neffect='allow'\nstatement='select'\n{body}\n");
        let verdict = judged(&host.with_central(&central(&text)), request);
        assert_eq!(
            verdict.effect == Effect::Allow,
            passes,
            "{body} {request}: {:?}",
            verdict.rules
        );
    }
    // What the host's own rules call they call as before.
    let own = set("[[rule]]\nname='own'\neffect='allow'\nstatement='select'\n");
    let both = own.with_central(&central("[[rule]]\nname='a'\neffect='allow'\n"));
    assert_eq!(judged(&both, "select f:shop.refresh").effect, Effect::Allow);
}

#[test]
fn the_stricter_mask_wins_whoever_wrote_it() {
    let mask =
        |method: &str| format!("[[rule]]\nname='m'\nmasks=[{{columns='c.e',method={method}}}]\n");
    let column = ColumnName::new(Name::new("public", "c"), "e");
    let hash = crate::mask::Method::Hash;
    for (host, centre) in [("'hash'", "'partial'"), ("'partial'", "'hash'")] {
        let both = set(&mask(host)).with_central(&central(&mask(centre)));
        let rules = both.mask_rules(&subject(json!({})), now());
        assert_eq!(MaskRule::method_for(&rules, &column), Some(hash.clone()));
    }
}

/// What a verdict demands; a laxer one demands less.
fn laxer(alone: &Verdict, with: &Verdict) -> Option<String> {
    let by_rule = |v: &Verdict, effect| {
        v.rules.iter().any(|r| r.rule != DEFAULT_DENY && r.effect == Some(effect))
    };
    if by_rule(alone, Effect::Deny) && with.effect != Effect::Deny {
        return Some("a deny was lifted".into());
    }
    if by_rule(alone, Effect::Hold) && with.effect < Effect::Hold {
        return Some("a hold was lifted".into());
    }
    let text = |v: &Verdict| -> Vec<String> {
        v.masks.iter().map(|m| serde_json::to_string(m).unwrap()).collect()
    };
    let masks = text(with);
    if let Some(lost) = text(alone).into_iter().find(|m| !masks.contains(m)) {
        return Some(format!("a mask was lost: {lost}"));
    }
    if with.limits.strictest(alone.limits) != with.limits {
        return Some("a limit was widened".into());
    }
    if with.effect == Effect::Hold && alone.effect == Effect::Hold {
        let (a, w) = (alone.hold.and_then(|h| h.timeout), with.hold.and_then(|h| h.timeout));
        if a.is_some_and(|a| w.is_none_or(|w| w > a)) {
            return Some("a hold waits longer".into());
        }
    }
    if alone.stream == Stream::Masked
        && with.effect != Effect::Deny
        && with.stream != Stream::Masked
    {
        return Some("output is not masked any more".into());
    }
    None
}

/// One rule of any kind.
fn one(name: &str, body: &str, kind: &str) -> String {
    let subject = body.lines().find(|l| l.contains("claims") || l.contains("labels"));
    let what = match kind {
        "limit" => format!("limits={{rows={}}}\n{body}", body.len()),
        "mask" => format!("masks=[{{columns='a.id',method='hash'}}]\n{}", subject.unwrap_or("")),
        "hold" => format!("effect='hold'\nhold={{timeout='{}s'}}\n{body}", body.len()),
        effect => format!("effect='{effect}'\n{body}"),
    };
    format!("[[rule]]\nname='{name}'\n{what}\n")
}

fn kinds() -> impl Strategy<Value = Vec<(String, &'static str)>> {
    let kind = prop::sample::select(vec!["allow", "allow", "hold", "deny", "limit", "mask"]);
    prop::collection::vec((rule_text(), kind), 0..6)
}

fn written(rules: &[(String, &str)]) -> Vec<String> {
    rules.iter().enumerate().map(|(n, (body, kind))| one(&format!("r{n}"), body, kind)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_bundle_never_makes_a_statement_laxer(host in kinds(), centre in kinds(), request in request()) {
        let host = set(&written(&host).concat());
        // What the centre may not say is refused whole; here it is left out.
        let may = |text: &String| {
            PolicySet::central(7, &[source("c.toml", text)]).is_ok()
        };
        let centre = central(&written(&centre).into_iter().filter(may).collect::<String>());
        let both = host.with_central(&centre);
        let (alone, with) = (judged(&host, &request), judged(&both, &request));
        prop_assert_eq!(laxer(&alone, &with), None, "{:?} became {:?}", alone, with);
        // And it is no laxer than the centre wants either, where the host lets it through.
        let centre_alone = judged(&centre, &request);
        prop_assert_eq!(laxer(&centre_alone, &with), None);
    }
}

#[test]
fn a_bundle_never_makes_an_ssh_request_laxer() {
    const RULES: &[&str] = &[
        "effect='allow'\nrequest='exec'",
        "effect='allow'\nprograms='*'",
        "effect='allow'\nprograms=['ls','cat','tar','sh']",
        "effect='allow'\nrequest='any'\npaths='/**'",
        "effect='allow'\nrequest=['exec','shell']",
        "effect='allow'\nprograms='*'\nunseen=true",
        "effect='allow'\nprograms='cat'\nbinary=true",
        "effect='allow'\nrequest='forward'\ndestinations='*:*'",
        "effect='hold'\nprograms='cat'",
        "effect='hold'\nprograms='cat'\nbinary=true",
        "effect='hold'\nrequest='shell'",
        "effect='hold'\nunseen=true",
        "effect='deny'\nprograms='rm'",
        "effect='deny'\npaths='/etc/**'",
        "effect='deny'\nnot={programs='ls'}",
        "masks=[{kinds='card',method='hash'}]",
        "masks=[{kinds='card',method='hash',binary='hold'}]",
        "programs='cat'\nmasks=[{kinds='card',method='hash',binary='hold'}]",
        "limits={bytes=10}",
        "programs='ls'\nlimits={bytes=5}",
    ];
    let analyzer = ShellAnalyzer::new(1);
    let home = Home::new("/home/app");
    let exec = |text: &str| {
        Asked::Exec(text.into(), LoginShell::from_path("bash")).facts(&analyzer, home.as_ref())
    };
    let mut asked: Vec<SshFacts> =
        ["ls", "cat /etc/passwd", "rm -rf /", "$x", "cat a | rm b", "tar c /srv", "sh -c 'rm x'"]
            .into_iter()
            .map(exec)
            .collect();
    asked.push(ssh::shell());
    asked.push(ssh::x11());
    asked.push(Asked::sftp("read", &["/etc/passwd"]).unwrap().facts(&analyzer, home.as_ref()));
    let mut compared = 0;
    for local in RULES {
        for second in RULES.iter().step_by(3) {
            let host = set(&format!("[[rule]]\nname='a'\n{local}\n[[rule]]\nname='b'\n{second}\n"));
            for text in RULES {
                let text = format!("[[rule]]\nname='a'\n{text}\n");
                let Ok(centre) = PolicySet::central(7, &[source("c.toml", &text)]) else {
                    continue;
                };
                let both = host.with_central(&centre);
                for facts in &asked {
                    let judge = |set: &PolicySet| set.judge(&unproven(), &Ask::Ssh(facts), now());
                    let (alone, with) = (judge(&host), judge(&both));
                    let why = laxer(&alone, &with);
                    assert_eq!(why, None, "{local}\n{second}\nwith {text}on {}", facts.text);
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 20_000, "{compared}");
}
