//! Where a token was used from, and which uses count as the same place.

use std::net::IpAddr;

use crate::config::Agent;

/// Where a connection comes from, as the kernel tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// The peer's address.
    pub addr: IpAddr,
    /// The user who owns the peer's socket; known on loopback only.
    pub uid: Option<u32>,
}

impl Source {
    /// The name of the place to which a first use pins a token: `loopback/uid:1000`,
    /// `203.0.113.7`, `2001:db8:1:2::/64`, or `agent-set:NAME` for an agent with an address set.
    ///
    /// IPv4-mapped addresses are IPv4; all loopback addresses are one place per user.
    pub fn key(&self, agent: &Agent) -> String {
        if !agent.sources.is_empty() {
            return format!("agent-set:{}", agent.name);
        }
        match (self.canonical(), self.uid) {
            (ip, Some(uid)) if ip.is_loopback() => format!("loopback/uid:{uid}"),
            (ip, None) if ip.is_loopback() => "loopback".to_owned(),
            (IpAddr::V4(ip), _) => ip.to_string(),
            (IpAddr::V6(ip), _) => {
                let s = ip.segments();
                let net = std::net::Ipv6Addr::new(s[0], s[1], s[2], s[3], 0, 0, 0, 0);
                format!("{net}/64")
            }
        }
    }

    /// Whether the agent may come from here: always, unless it has an address set.
    pub fn allowed_for(&self, agent: &Agent) -> bool {
        let ip = self.canonical();
        agent.sources.is_empty() || agent.sources.iter().any(|net| net.contains(&ip))
    }

    /// The address with the IPv4-mapped form undone.
    pub fn canonical(&self) -> IpAddr {
        self.addr.to_canonical()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(sources: &[&str]) -> Agent {
        Agent {
            name: "etl".into(),
            issuer: "okta".into(),
            cid: Some("0oa1".into()),
            act_sub: None,
            owners: vec![],
            labels: Default::default(),
            ssh_keys: vec![],
            sources: sources.iter().map(|s| s.parse().unwrap()).collect(),
        }
    }

    #[test]
    fn the_same_place_has_the_same_key() {
        let cases: &[(&str, Option<u32>, &[&str], &str)] = &[
            ("127.0.0.1", Some(1000), &[], "loopback/uid:1000"),
            ("127.9.9.9", Some(1000), &[], "loopback/uid:1000"),
            ("::1", Some(1000), &[], "loopback/uid:1000"),
            ("::ffff:127.0.0.1", Some(0), &[], "loopback/uid:0"),
            ("::1", None, &[], "loopback"),
            ("203.0.113.7", None, &[], "203.0.113.7"),
            ("::ffff:203.0.113.7", None, &[], "203.0.113.7"),
            ("2001:db8:1:2:3:4:5:6", None, &[], "2001:db8:1:2::/64"),
            ("2001:db8:1:2:ffff::1", None, &[], "2001:db8:1:2::/64"),
            ("10.0.0.9", None, &["10.0.0.0/8"], "agent-set:etl"),
        ];
        for (addr, uid, set, want) in cases {
            let source = Source { addr: addr.parse().unwrap(), uid: *uid };
            assert_eq!(source.key(&agent(set)), *want, "{addr}");
        }
    }

    #[test]
    fn an_address_set_binds_the_agent() {
        let a = agent(&["10.0.0.0/8", "2001:db8::/32"]);
        for (addr, want) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("11.0.0.1", false),
            ("2001:db8::1", true),
            ("127.0.0.1", false),
        ] {
            let source = Source { addr: addr.parse().unwrap(), uid: None };
            assert_eq!(source.allowed_for(&a), want, "{addr}");
        }
    }
}
