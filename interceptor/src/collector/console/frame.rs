//! What stands around every page.

use super::assets;
use super::logins::Login;
use super::text::Shown;
use crate::collector::Role;
use crate::record::terminal::safe;

/// What stands around a page.
#[derive(Debug, Clone, Default)]
pub struct Frame {
    /// Title of the window.
    pub title: String,
    /// Which entry of the navigation is the present one.
    pub section: &'static str,
    /// Who is logged in; nobody on pages outside.
    pub person: Option<Shown>,
    /// Their roles in words.
    pub roles: String,
    /// They see what is for administrators alone.
    pub admin: bool,
    /// Goes into every form.
    pub csrf: String,
    /// What this page wants to hear of; empty for nothing.
    pub live: &'static str,
    /// How many changes had been told before the page was made.
    pub told: u64,
}

impl Frame {
    /// For somebody who is logged in.
    pub fn new(title: &str, section: &'static str, login: &Login) -> Self {
        let roles = login.person.roles.iter().map(|r| match r {
            Role::Viewer => "viewer",
            Role::Approver => "approver",
            Role::Admin => "administrator",
        });
        Self {
            title: safe(title),
            section,
            person: Some(Shown::short(&login.person.name, 60)),
            roles: roles.collect::<Vec<_>>().join(", "),
            admin: login.person.is(Role::Admin),
            csrf: login.csrf.clone(),
            live: "",
            told: 0,
        }
    }

    /// For nobody.
    pub fn outside(title: &str) -> Self {
        Self { title: safe(title), ..Self::default() }
    }

    /// The page is brought up to date when something of this kind changes. `told` is the hub's
    /// count before anything of the page was read.
    pub fn live(self, kind: &'static str, told: u64) -> Self {
        Self { live: kind, told, ..self }
    }

    /// Address of the style sheet.
    pub fn style(&self) -> &'static str {
        assets::style()
    }

    /// Address of the icon.
    pub fn icon(&self) -> &'static str {
        assets::icon()
    }

    /// Address of the script.
    pub fn script(&self) -> &'static str {
        assets::script()
    }
}
