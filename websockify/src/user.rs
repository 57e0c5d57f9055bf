//! Whose rights a process has: `--user`, `--wrap-user`.

use std::ffi::{CString, OsString};

use anyhow::{Result, ensure};
use nix::errno::Errno;
use nix::unistd::{
    Gid, Group, Uid, User, getgrouplist, getresgid, getresuid, setgroups, setresgid, setresuid,
    setuid,
};

/// A user, and the groups that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// As it was given, for people.
    name: String,
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
    /// What the system knows of the user, if it does.
    account: Option<User>,
}

impl Identity {
    /// From `USER[:GROUP]`, each a name or a number. A user that the system does not know has to come with its group.
    ///
    /// # Errors
    /// There is no such user or group; the text is for people.
    pub(crate) fn find(text: &str) -> Result<Self, String> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (text, None),
        };
        let failed = |error: Errno| format!("'{text}' cannot be looked up: {}", error.desc());
        let no_user = || format!("there is no user '{user}'");
        // As everywhere (chown in POSIX) a name may consist of digits.
        let account = match (User::from_name(user).map_err(failed)?, number(user)) {
            (None, Some(number)) => User::from_uid(number.into()).map_err(failed)?,
            (account, _) => account,
        };
        let uid = account.as_ref().map(|account| account.uid);
        let uid = uid
            .or_else(|| number(user).map(Uid::from_raw))
            .ok_or_else(no_user)?;
        let gid = match (group, &account) {
            (Some(group), _) => {
                let known = Group::from_name(group)
                    .map_err(failed)?
                    .map(|group| group.gid);
                (known.or_else(|| number(group).map(Gid::from_raw)))
                    .ok_or_else(|| format!("there is no group '{group}'"))?
            }
            (None, Some(account)) => account.gid,
            (None, None) => {
                return Err(format!(
                    "{}; give its group as well, '{user}:GROUP'",
                    no_user()
                ));
            }
        };
        let groups = match &account {
            Some(account) => groups_of(account, gid).map_err(failed)?,
            None => vec![gid],
        };
        Ok(Self {
            name: text.to_owned(),
            uid,
            gid,
            groups,
            account,
        })
    }

    /// How it was given.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has all rights.
    pub(crate) fn is_root(&self) -> bool {
        self.uid.is_root()
    }

    /// Whether both are the same user, who may do everything to each other's processes.
    pub(crate) fn is_same_user(&self, other: &Self) -> bool {
        self.uid == other.uid
    }

    /// The user and the group, for what is to belong to them.
    pub(crate) fn ids(&self) -> (u32, u32) {
        (self.uid.as_raw(), self.gid.as_raw())
    }

    /// Checks that it can be assumed, as far as that can be known before.
    ///
    /// # Errors
    /// `option` needs root.
    pub(crate) fn check(&self, option: &str) -> Result<()> {
        ensure!(
            Uid::effective().is_root() || self.is_ours(),
            "{option} {} needs root",
            self.name
        );
        Ok(())
    }

    /// Takes the rights of this user instead of those that this process has, in all of its threads, for good. Nothing happens if it
    /// has done so.
    ///
    /// # Errors
    /// We may not, or root's rights could be had back (`EPERM`).
    pub(crate) fn assume(&self) -> nix::Result<()> {
        if self.is_ours() && !self.is_root() {
            return Ok(());
        }
        setgroups(&self.groups)?;
        setresgid(self.gid, self.gid, self.gid)?;
        setresuid(self.uid, self.uid, self.uid)?;
        let regained = !self.is_root() && setuid(Uid::from_raw(0)).is_ok();
        match self.is_ours() && !regained {
            true => Ok(()),
            false => Err(Errno::EPERM),
        }
    }

    /// Whether this process has its user and group, and no others.
    fn is_ours(&self) -> bool {
        let users = getresuid().map(|ids| [ids.real, ids.effective, ids.saved]);
        let groups = getresgid().map(|ids| [ids.real, ids.effective, ids.saved]);
        users == Ok([self.uid; 3]) && groups == Ok([self.gid; 3])
    }

    /// What the environment of a program says of its user.
    pub(crate) fn variables(&self) -> Vec<(&'static str, OsString)> {
        let Some(account) = &self.account else {
            return Vec::new();
        };
        vec![
            ("HOME", account.dir.clone().into_os_string()),
            ("SHELL", account.shell.clone().into_os_string()),
            ("USER", account.name.clone().into()),
            ("LOGNAME", account.name.clone().into()),
        ]
    }
}

/// The number of a user or group; the highest stands for none.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|&number| number != u32::MAX)
}

/// The groups of a user, of which `gid` is the first.
fn groups_of(account: &User, gid: Gid) -> nix::Result<Vec<Gid>> {
    let name = CString::new(account.name.as_bytes()).map_err(|_| Errno::EINVAL)?;
    getgrouplist(&name, gid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_found() {
        let root = Identity::find("root").unwrap();
        assert_eq!((root.ids(), root.is_root()), ((0, 0), true));
        for same in ["0", "root:root", "root:0", "0:0"] {
            let found = Identity::find(same).unwrap();
            assert!(
                found.ids() == root.ids() && found.groups == root.groups,
                "{same}"
            );
        }
        let unknown = Identity::find("123456789:987654321").unwrap();
        assert_eq!(unknown.ids(), (123_456_789, 987_654_321));
        assert_eq!(unknown.groups, [Gid::from_raw(987_654_321)]);
        assert!(!unknown.is_same_user(&root));
        assert_eq!(unknown.variables(), []);
        assert!(root.variables().contains(&("USER", "root".into())));
    }

    #[test]
    fn what_is_not_found_is_named() {
        for (text, what) in [
            ("", "no user ''"),
            ("no such user", "no user 'no such user'"),
            ("-1", "no user '-1'"),
            ("4294967295:0", "no user '4294967295'"),
            ("root:4294967295", "no group '4294967295'"),
            ("123456789", "give its group as well, '123456789:GROUP'"),
            ("root:", "no group ''"),
            ("root:no such group", "no group 'no such group'"),
            (":root", "no user ''"),
        ] {
            let refused = Identity::find(text).unwrap_err();
            assert!(refused.contains(what), "{text}: {refused}");
        }
    }
}
