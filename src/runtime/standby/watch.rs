//! The thread that looks at the logs of shapes that requests wait for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::runtime::standby::Standby;

/// Between two looks at a log; and at least [`SHARE`] times as long as a look at all of them took.
const PAUSE: Duration = Duration::from_millis(40);
const SHARE: u32 = 4;
/// How often the descriptors of shapes that nobody waits for are closed.
const RELEASE_INTERVAL: Duration = Duration::from_secs(10);

/// # Errors
/// The thread cannot be started.
pub(super) fn spawn(standby: Arc<Standby>) -> std::io::Result<()> {
    // Not joined: it ends by itself once the directory is ours and nobody waits any more, and it
    // changes nothing that would have to be ended in order.
    std::thread::Builder::new().name("standby".to_owned()).spawn(move || watch(&standby)).map(drop)
}

fn watch(standby: &Standby) {
    let mut released = Instant::now();
    loop {
        let begun = Instant::now();
        let opened = standby.opened();
        if standby.is_closed() && opened.is_empty() {
            return;
        }
        let release = released.elapsed() >= RELEASE_INTERVAL;
        for shape in &opened {
            let waited_for = shape.files().is_some_and(super::FollowedFiles::is_waited_for);
            if waited_for {
                // The request that waits looks by itself before it answers, and says what is wrong.
                let _result = shape.look_at_files();
            } else if release {
                shape.reader.release_files();
            }
        }
        if release {
            released = begun;
        }
        drop(opened);
        std::thread::sleep(PAUSE.max(begun.elapsed() * SHARE));
    }
}
