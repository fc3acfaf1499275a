//! Mounts whose locks are not seen by other hosts.

use std::fs;

/// The kinds of file systems that have such options: nfs(5).
const NFS: &str = "nfs";
/// What keeps `flock` on this host.
const LOCAL_OPTIONS: [&str; 3] = ["nolock", "local_lock=flock", "local_lock=all"];

/// The option by which the locks of a device stay on this host. `None` also where that cannot be told.
pub(super) fn local_locks(device: u64) -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    local_option(&mounts, &format!("{major}:{minor}"))
}

/// Looks for a device in a text as proc_pid_mountinfo(5) has it.
fn local_option(mounts: &str, device: &str) -> Option<String> {
    mounts.lines().find_map(|line| {
        // 36 35 98:0 /root /at options optional… - type source options-of-the-file-system
        let (mount, system) = line.split_once(" - ")?;
        let mount: Vec<&str> = mount.split(' ').collect();
        let system: Vec<&str> = system.split(' ').collect();
        let (kind, options) = (system.first()?, system.get(2)?);
        if mount.get(2) != Some(&device) || !kind.starts_with(NFS) {
            return None;
        }
        options.split(',').find(|option| LOCAL_OPTIONS.contains(option)).map(str::to_owned)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw,nolock
40 22 0:50 / /srv rw,relatime shared:9 master:2 - nfs4 host:/a rw,vers=4.2,local_lock=none,addr=10.0.0.1
41 22 0:51 / /old rw,relatime - nfs host:/b rw,vers=3,nolock,local_lock=all,addr=10.0.0.1
42 22 0:52 / /half rw - nfs host:/c rw,vers=3,local_lock=posix
43 22 0:53 / /flock rw - nfs host:/d rw,vers=3,local_lock=flock
";

    #[test]
    fn locks_that_stay_on_this_host_are_known_by_the_options_of_the_mount() {
        for (device, option) in [
            ("254:0", None),
            ("0:50", None),
            ("0:51", Some("nolock")),
            ("0:52", None),
            ("0:53", Some("local_lock=flock")),
            ("0:99", None),
        ] {
            assert_eq!(local_option(MOUNTS, device).as_deref(), option, "{device}");
        }
        assert_eq!(local_option("not a line of it\n", "0:1"), None);
    }

    #[test]
    fn a_device_of_this_host_is_no_such_mount() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(local_locks(fs::metadata(folder.path()).unwrap().dev()), None);
    }
}
