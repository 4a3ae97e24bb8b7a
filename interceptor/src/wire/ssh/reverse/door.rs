//! Through what the host opens channels to the agent, and which channel comes through which.

use std::fmt;

use super::super::forward::{MAX_TARGET, is_protected_port, is_protected_socket};
use super::ssh;
use crate::config::Config;
use crate::policy::SshFacts;
use crate::policy::ssh::{Destination, ForwardKind};

/// What an agent may have opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// A port on which the host listens.
    Tcp {
        /// The address as the agent wrote it (RFC 4254, section 7.1).
        address: String,
        /// The port; 0 for one that sshd chooses.
        port: u32,
    },
    /// A Unix socket on which the host listens.
    Unix {
        /// Its path.
        path: String,
    },
    /// Programs that draw on the agent's display.
    X11,
    /// Programs that use the agent's keys.
    Agent,
}

/// Where a channel comes from that sshd opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// A connection to a port.
    Tcp {
        /// The address on which sshd listens, as it was asked to.
        address: String,
        /// Its port.
        port: u32,
        /// Who connected.
        from: (String, u32),
    },
    /// A connection to a Unix socket.
    Unix {
        /// Its path.
        path: String,
    },
    /// A program that draws.
    X11 {
        /// Who connected.
        from: (String, u32),
    },
    /// A program that wants to sign.
    Agent,
}

impl Door {
    /// What policy is asked.
    pub fn facts(&self) -> SshFacts {
        match self {
            Self::Tcp { address, port } => {
                let to = Destination::Tcp { host: address.clone(), port: *port };
                ssh::forward(ForwardKind::Remote, to)
            }
            Self::Unix { path } => {
                ssh::forward(ForwardKind::Remote, Destination::Unix(path.clone()))
            }
            Self::X11 => ssh::x11(),
            Self::Agent => ssh::agent_forward(),
        }
    }

    /// The name of its class, for the record.
    pub fn class(&self) -> &'static str {
        match self {
            Self::Tcp { .. } | Self::Unix { .. } => "remote-forward",
            Self::X11 => "x11",
            Self::Agent => "agent-forward",
        }
    }

    /// Whether the host listens for it on a place that the agent named.
    pub fn listens(&self) -> bool {
        matches!(self, Self::Tcp { .. } | Self::Unix { .. })
    }

    /// Why it is never opened, whatever rules say.
    pub fn never(&self, config: &Config) -> Option<&'static str> {
        match self {
            Self::Tcp { address, port } => match u16::try_from(*port) {
                Err(_) => Some("it names no port"),
                Ok(_) if address.len() > MAX_TARGET => Some("it names no address"),
                // A port is this host's own on whatever address it listens.
                Ok(port) if is_protected_port(config, port) => {
                    Some("FORWARD_PROTECTED: it would listen on a protected port of this host")
                }
                Ok(_) => None,
            },
            Self::Unix { path } if is_protected_socket(config, path) => {
                Some("FORWARD_PROTECTED: it would listen on a protected socket of this host")
            }
            Self::Unix { .. } | Self::X11 | Self::Agent => None,
        }
    }

    /// The same with the port that sshd chose.
    pub fn with_port(self, chosen: Option<u32>) -> Self {
        match (self, chosen) {
            (Self::Tcp { address, port: 0 }, Some(port)) => Self::Tcp { address, port },
            (door, _) => door,
        }
    }

    /// Whether a channel from there comes through it.
    pub fn lets(&self, origin: &Origin) -> bool {
        match (self, origin) {
            (Self::Tcp { address, port }, Origin::Tcp { address: to, port: at, .. }) => {
                address == to && port == at
            }
            (Self::Unix { path }, Origin::Unix { path: to }) => path == to,
            (Self::X11, Origin::X11 { .. }) | (Self::Agent, Origin::Agent) => true,
            _ => false,
        }
    }
}

impl fmt::Display for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.facts().text)
    }
}

impl Origin {
    /// The type of its channel.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tcp { .. } => "forwarded-tcpip",
            Self::Unix { .. } => "forwarded-streamlocal@openssh.com",
            Self::X11 { .. } => "x11",
            Self::Agent => "auth-agent@openssh.com",
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cut = |host: &str| host.chars().take(MAX_TARGET).collect::<String>();
        match self {
            Self::Tcp { address, port, from: (host, number) } => {
                let to = Destination::Tcp { host: cut(address), port: *port };
                write!(f, "{to} from {}:{number}", cut(host))
            }
            Self::Unix { path } => write!(f, "unix:{}", cut(path)),
            Self::X11 { from: (host, number) } => {
                write!(f, "the agent's display from {}:{number}", cut(host))
            }
            Self::Agent => f.write_str("the agent's keys"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(address: &str, port: u32) -> Door {
        Door::Tcp { address: address.into(), port }
    }

    fn from(address: &str, port: u32) -> Origin {
        Origin::Tcp { address: address.into(), port, from: ("192.0.2.1".into(), 5) }
    }

    #[test]
    fn a_channel_comes_only_through_the_door_that_was_opened_for_it() {
        let unix = |path: &str| Door::Unix { path: path.into() };
        let through = |path: &str| Origin::Unix { path: path.into() };
        assert!(tcp("localhost", 9000).lets(&from("localhost", 9000)));
        assert!(tcp("", 0).with_port(Some(40001)).lets(&from("", 40001)));
        assert!(unix("/tmp/a").lets(&through("/tmp/a")));
        assert!(Door::Agent.lets(&Origin::Agent));
        for (door, origin) in [
            (tcp("localhost", 9000), from("localhost", 9001)),
            (tcp("localhost", 9000), from("", 9000)),
            (tcp("", 0), from("", 40001)),
            (unix("/tmp/a"), through("/tmp/b")),
            (Door::X11, Origin::Agent),
            (Door::Agent, Origin::X11 { from: (String::new(), 0) }),
        ] {
            assert!(!door.lets(&origin), "{door:?} {origin:?}");
        }
    }

    #[test]
    fn nothing_listens_where_this_host_is_protected() {
        let config: Config = toml::from_str(
            "[[service]]\nname='db'\nprotocol='postgres'\nport=5432\naudience='a'\n\
             plaintext_loopback=true\nupstream={socket='/tmp/.s.PGSQL.5432'}\n\
             [[service]]\nname='ssh'\nprotocol='ssh'\nport=22\naudience='b'\n\
             upstream={host='127.0.0.1',port=2222}\n",
        )
        .unwrap();
        for address in ["", "*", "localhost", "127.0.0.1", "192.0.2.1"] {
            for port in [22, 2222, 5432, 65_536, u32::MAX] {
                assert!(tcp(address, port).never(&config).is_some(), "{address}:{port}");
            }
            for port in [0, 8080, 65_535] {
                assert!(tcp(address, port).never(&config).is_none(), "{address}:{port}");
            }
        }
        for (path, never) in [
            ("/tmp/.s.PGSQL.5432", true),
            ("/run/interceptor/another", true),
            ("relative", true),
            ("/tmp/mine.sock", false),
        ] {
            assert_eq!(Door::Unix { path: path.into() }.never(&config).is_some(), never, "{path}");
        }
    }
}
