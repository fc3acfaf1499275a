//! A file system that really runs full: a small tmpfs.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use super::{Row, confirmed_flush, equal, followers, last_words};
use crate::service::Service;
use crate::stage::Stage;
use crate::{Outcome, journal};

/// How the message begins where this cannot be run.
pub const NOT_POSSIBLE: &str = "not possible here";

const SIZE: &str = "40m";
const SIZE_AFTERWARDS: &str = "400m";
/// Longest wait for the end of a service whose disk is full.
const END_WAIT_MAX: Duration = Duration::from_secs(60);

/// How the disk becomes full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filling {
    /// By the service's own rows.
    Own,
    /// By somebody else, from one moment to the next: the service's next write is the one that fails.
    AtOnce,
}

pub const FILLINGS: [Filling; 2] = [Filling::Own, Filling::AtOnce];

impl Filling {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Filling::Own => "fills up",
            Filling::AtOnce => "full at once",
        }
    }
}

/// Fills the disk under a service of its own, makes room, and looks at what is left.
///
/// # Errors
/// A promise that was not kept; or a text that begins with [`NOT_POSSIBLE`].
pub async fn run(stage: &Stage, filling: Filling) -> Outcome<Row> {
    let mount =
        Mount::create(&stage.directory().join(format!("tmpfs-{}", filling.name().replace(' ', "-"))))?;
    let stream = format!("full_{}", filling.name().replace(' ', "_"));
    let mut settings = stage.service_settings(&stream);
    settings.data_dir = mount.path.join("data");
    let mut service = Service::start(settings).await?;
    let mut clients = followers(&service);
    equal(&mut clients, &stage.sql).await?;
    let begun = Instant::now();
    let mut filled = false;
    let mut transactions = 0;
    while service.try_wait().is_none() {
        if begun.elapsed() > END_WAIT_MAX {
            return Err("the disk is full, and the service neither ends nor says so".into());
        }
        let rows = if filling == Filling::Own { 16 } else { 1 };
        let sql = format!(
            "INSERT INTO ledger (bucket, entry) SELECT n % 6, repeat(md5(random()::text), 2048) FROM generate_series(1, {rows}) n"
        );
        stage.sql.batch_execute(&sql).await?;
        transactions += 1;
        if filling == Filling::AtOnce && transactions > 5 && !filled {
            filled = true;
            mount.fill()?;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let acknowledged = confirmed_flush(&stage.sql, &stream).await?;
    let outcome = format!("ended: {}", last_words(&service.output()));
    if service.output().contains("panicked") {
        return Err(format!("something panicked; {outcome}").into());
    }
    mount.make_room()?;
    journal::verify(&stage.binary, service.data_dir())?;
    let lifted = Instant::now();
    service.restart().await?;
    clients.iter_mut().for_each(|follower| follower.client.redirect(service.address()));
    equal(&mut clients, &stage.sql).await?;
    let equal_in = lifted.elapsed();
    equal(&mut followers(&service), &stage.sql).await?;
    let sent_away = clients.iter().map(|follower| follower.client.refetches().len()).sum();
    let graceful = service.terminate().await;
    stage.sql.execute("SELECT pg_drop_replication_slot('electric_slot_' || $1)", &[&stream]).await?;
    stage.sql.batch_execute("DELETE FROM ledger WHERE length(entry) > 1000").await?;
    if !graceful {
        return Err("the service did not end in order afterwards".into());
    }
    Ok(Row {
        struck: transactions,
        outcome: format!("{outcome} (acknowledged {acknowledged})"),
        sent_away,
        equal_in,
    })
}

struct Mount {
    path: PathBuf,
}

impl Mount {
    fn create(path: &Path) -> Outcome<Mount> {
        if !rustix::process::geteuid().is_root() {
            return Err(format!("{NOT_POSSIBLE}: mounting a tmpfs needs root").into());
        }
        fs::create_dir_all(path)?;
        mount(&["-t", "tmpfs", "-o", &format!("size={SIZE}"), "tmpfs"], path)
            .map_err(|error| format!("{NOT_POSSIBLE}: {error}"))?;
        Ok(Mount { path: path.to_owned() })
    }

    /// Takes all the room that is left.
    fn fill(&self) -> Outcome<()> {
        let mut ballast = File::create(self.path.join("ballast"))?;
        let block = [0_u8; 4_096];
        loop {
            match ballast.write(&block) {
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn make_room(&self) -> Outcome<()> {
        mount(&["-o", &format!("remount,size={SIZE_AFTERWARDS}")], &self.path)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("--lazy").arg(&self.path).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} stays mounted", self.path.display());
        }
    }
}

fn mount(arguments: &[&str], path: &Path) -> Outcome<()> {
    let output = Command::new("mount").args(arguments).arg(path).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_owned().into())
}
