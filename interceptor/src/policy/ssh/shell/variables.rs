//! Variables that a command sets, and what they can do to programs.

/// Variables that change which programs run or what they are made of, whatever the command says.
/// A name that ends in `*` is a prefix.
const DANGEROUS: &[&str] = &[
    // the shell
    "PATH",
    "ENV",
    "BASH_ENV",
    "BASH_FUNC_*",
    "SHELLOPTS",
    "BASHOPTS",
    "BASH_LOADABLES_PATH",
    "BASH_XTRACEFD",
    "PROMPT_COMMAND",
    "PS0",
    "PS1",
    "PS2",
    "PS3",
    "PS4",
    "IFS",
    "CDPATH",
    "GLOBIGNORE",
    "EXECIGNORE",
    "POSIXLY_CORRECT",
    "HOME",
    "SHELL",
    "TMPDIR",
    "FCEDIT",
    "FIGNORE",
    "INPUTRC",
    "HISTFILE",
    "HISTCMD",
    "PWD",
    "OLDPWD",
    "BASH_COMPAT",
    "OPTIND",
    "OPTARG",
    "REPLY",
    "MAPFILE",
    "ZDOTDIR",
    // the loader and the C library
    "LD_*",
    "DYLD_*",
    "GLIBC_TUNABLES",
    "GCONV_PATH",
    "LOCPATH",
    "NLSPATH",
    "HOSTALIASES",
    "RESOLV_HOST_CONF",
    "LOCALDOMAIN",
    "RES_OPTIONS",
    "MALLOC_*",
    "TERMINFO*",
    "TERMCAP",
    "TERMPATH",
    // editors, pagers, helpers
    "EDITOR",
    "VISUAL",
    "SUDO_EDITOR",
    "SYSTEMD_EDITOR",
    "PAGER",
    "MANPAGER",
    "MANOPT",
    "GIT_*",
    "SYSTEMD_PAGER",
    "SYSTEMD_LESS",
    "BROWSER",
    "LESS",
    "LESSOPEN",
    "LESSCLOSE",
    "LESSKEY*",
    "MORE",
    "EXINIT",
    "VIMINIT",
    "MYVIMRC",
    "SSH_ASKPASS*",
    "SUDO_ASKPASS",
    "DISPLAY",
    "SSH_AUTH_SOCK",
    "RSYNC_*",
    "TAR_OPTIONS",
    "GZIP",
    "XZ_*",
    "ZIPOPT",
    "UNZIP",
    "CURL_HOME",
    "WGETRC",
    "MAKEFLAGS",
    "MAKEFILES",
    "GREP_OPTIONS",
    "PSQLRC",
    "PGSYSCONFDIR",
    "PGSERVICEFILE",
    "MYSQL_HOME",
    "OPENSSL_*",
    "KRB5_CONFIG",
    "XDG_*",
    "DBUS_*",
    "DOCKER_*",
    "KUBECONFIG",
    "ANSIBLE_*",
    // interpreters
    "PYTHON*",
    "PERL*",
    "RUBY*",
    "GEM_*",
    "BUNDLE_*",
    "NODE_*",
    "NPM_*",
    "npm_*",
    "PHPRC",
    "PHP_*",
    "LUA_*",
    "TCL*",
    "JAVA_*",
    "_JAVA_OPTIONS",
    "JDK_*",
    "CLASSPATH",
    "GUILE_*",
    "R_*",
    "JULIA_*",
    "AWKPATH",
    "AWKLIBPATH",
    "CC",
    "CXX",
    "CFLAGS",
    "LDFLAGS",
    "CARGO_*",
    "RUSTC*",
    "GO*",
];

/// Variables that only say how things look.
const HARMLESS: &[&str] =
    &["LANG", "LANGUAGE", "LC_*", "TZ", "TERM", "COLUMNS", "LINES", "NO_COLOR", "CLICOLOR*", "_"];

fn listed(name: &str, list: &[&str]) -> bool {
    list.iter().any(|entry| match entry.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *entry,
    })
}

/// Whether it can make an allowed program another one, or is no name at all.
pub fn dangerous(name: &str) -> bool {
    !is_name(name) || listed(name, DANGEROUS)
}

/// Whether no rule need allow it.
pub(super) fn harmless(name: &str) -> bool {
    listed(name, HARMLESS)
}

/// Whether a shell takes it for the name of a variable.
pub(super) fn is_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The name in `NAME=value`.
pub(super) fn assigned(word: &str) -> Option<&str> {
    word.split_once('=').map(|(name, _)| name).filter(|name| is_name(name))
}
