//! The user that a command runs as, if that is not the worker's own.

use std::ffi::CString;
use std::path::PathBuf;

use nix::unistd::{User, getgrouplist};
use rustix::process::{Gid, Uid};

/// A user of this system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) name: String,
    pub(crate) home: PathBuf,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: Vec<Gid>,
}

/// The account of this user, by name or number; none if this process is that user already.
/// The error says what to do.
pub(crate) fn find(user: &str) -> Result<Option<Account>, String> {
    let unreadable = |error| format!("user `{user}` cannot be looked up: {error}");
    let mut found = User::from_name(user).map_err(unreadable)?;
    if let (None, Ok(number)) = (&found, user.parse()) {
        found = User::from_uid(nix::unistd::Uid::from_raw(number)).map_err(unreadable)?;
    }
    let Some(found) = found else {
        return Err(format!("there is no user `{user}` on this machine; add it, or name another"));
    };
    let uid = Uid::from_raw(found.uid.as_raw());
    let own = rustix::process::geteuid();
    if uid == own {
        return Ok(None);
    }
    if !own.is_root() {
        return Err(format!(
            "only a worker that is root can run commands as `{user}`; start it as root, or as \
             that user"
        ));
    }
    // A name that came from the system holds no NUL.
    let name = CString::new(found.name.as_str()).unwrap_or_default();
    let groups = getgrouplist(&name, found.gid).map_err(unreadable)?;
    Ok(Some(Account {
        name: found.name,
        home: found.dir,
        uid,
        gid: Gid::from_raw(found.gid.as_raw()),
        groups: groups.into_iter().map(|group| Gid::from_raw(group.as_raw())).collect(),
    }))
}
