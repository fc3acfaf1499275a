//! A standby that takes over: what it had goes on, what it never had starts over.

use shapefold_xtask::postgres::connect;
use tokio_postgres::Client;

use super::slots::{running, starts_over};
use crate::service::{
    ITEMS, PrivatePostgres, catch_up, handle, health_message, journal_is_sound, journal_tail, until,
};
use crate::support::{Server, Service, ShapeClient, ShapeRequest, TestDatabase, WAIT_DURATION_MAX};

/// From this version on a standby keeps slots in step.
const FIRST_WITH_SYNCED_SLOTS: u32 = 170_000;

/// A primary, a standby behind it, and a service on the primary.
struct Pair {
    primary: PrivatePostgres,
    standby: Server,
    database: TestDatabase,
    service: Service,
    client: ShapeClient,
    before: String,
    /// Slots are kept in step.
    synced: bool,
}

impl Pair {
    async fn start(hint: &str) -> Pair {
        let mut primary = PrivatePostgres::start().await;
        let database = primary.database(hint).await;
        let version = database.value("SHOW server_version_num").await.expect("a version");
        let synced = version.parse::<u32>().expect("a number") >= FIRST_WITH_SYNCED_SLOTS;
        let sync = if synced { "sync_replication_slots = on" } else { "" };
        let settings = format!("primary_slot_name = 'standby'\nhot_standby_feedback = on\n{sync}");
        let folder = primary.folder.path().join("standby");
        let standby = primary.server.standby(&folder, "dbname=postgres", &settings).await;
        let mut standby = standby.unwrap_or_else(|error| panic!("{error}"));
        database.execute("SELECT pg_create_physical_replication_slot('standby', true)").await;
        standby.start().await.unwrap_or_else(|error| panic!("{error}"));
        if synced {
            database.execute("ALTER SYSTEM SET synchronized_standby_slots = 'standby'").await;
            database.execute("SELECT pg_reload_conf()").await;
        }
        let (service, client, before) = running(&database).await;
        let pair = Pair { primary, standby, database, service, client, before, synced };
        pair.wait_in_step().await;
        pair
    }

    async fn of_standby(&self) -> Client {
        let client = connect(&self.standby.url(&self.database.name)).await;
        client.unwrap_or_else(|error| panic!("{error}"))
    }

    /// Until the standby has a slot of its own that lasts, and everything that was written.
    async fn wait_in_step(&self) {
        let standby = self.of_standby().await;
        if self.synced {
            let slot = format!("electric_slot_{}", self.database.name);
            until("the standby keeps the slot", async || {
                // The slot may be kept from where nothing runs, which an idle server does not write down.
                self.database.execute("SELECT pg_log_standby_snapshot()").await;
                let sql =
                    "SELECT FROM pg_replication_slots WHERE slot_name = $1 AND synced AND NOT temporary";
                standby.query_opt(sql, &[&slot]).await.expect("the standby answers").map(drop)
            })
            .await;
        }
        // What was read may be up to a position that is inserted and not flushed yet: a commit flushes it.
        self.database.execute("SELECT pg_logical_emit_message(true, 'in', 'step')").await;
        let end = self.database.value("SELECT pg_current_wal_flush_lsn()").await.expect("a position");
        until("the standby has everything", async || {
            let sql = format!("SELECT FROM pg_stat_wal_receiver WHERE flushed_lsn >= '{end}'");
            standby.query_opt(&sql, &[]).await.expect("the standby answers").map(drop)
        })
        .await;
    }

    /// The standby hears of nothing any more, and nobody waits for it.
    async fn cut_off(&mut self) {
        self.standby.stop();
        if self.synced {
            self.database.execute("ALTER SYSTEM RESET synchronized_standby_slots").await;
            self.database.execute("SELECT pg_reload_conf()").await;
        }
    }

    /// The primary dies; the standby comes up at its address, and is promoted.
    async fn fail_over(&mut self) {
        self.primary.server.kill();
        self.standby.stop();
        self.standby.move_to(self.primary.server.port()).expect("the files are ours");
        self.standby.start().await.unwrap_or_else(|error| panic!("{error}"));
        // A standby has all that is needed but for being the primary: nothing is decided on it.
        health_message(&mut self.service, "waiting", "the server is a standby").await;
        self.promote().await;
    }

    async fn promote(&self) {
        self.database.execute("SELECT pg_promote()").await;
        let timeline = "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)";
        assert_eq!(self.database.value(timeline).await.as_deref(), Some("00000002"));
    }

    /// The client follows on as if nothing had been.
    async fn goes_on(&mut self) {
        self.database.execute("UPDATE items SET v = v || ' after'; INSERT INTO items VALUES (100)").await;
        catch_up(&mut self.client, &ITEMS, &self.database.client().await).await;
        assert_eq!((handle(&self.client), self.client.refetches().len()), (self.before.clone(), 0));
    }

    async fn ends_with(&mut self, wanted: &str, unwanted: &str) {
        assert!(self.service.terminate().await, "{}", self.service.output());
        let history = journal_tail(self.service.data_dir(), &[]);
        assert!(history.contains(wanted), "{wanted} is not in\n{history}");
        assert!(!history.contains(unwanted), "{unwanted} is in\n{history}");
        journal_is_sound(self.service.data_dir());
    }

    async fn starts_over(&mut self) {
        let Pair { database, service, client, before, .. } = self;
        starts_over(database, service, client, before, " cause: Timeline").await;
    }
}

/// The service runs on while the primary dies and its standby is promoted.
#[tokio::test]
async fn a_promoted_standby_with_the_slot_carries_every_shape_on() {
    let mut pair = Pair::start("promoted").await;
    let mut inner = pair
        .service
        .follow(ShapeRequest::table("items").filtered("id IN (SELECT id FROM items WHERE v = 'start')", &[]));
    catch_up(&mut inner, &ITEMS, &pair.database.client().await).await;
    pair.database.execute("UPDATE items SET v = 'moved' WHERE id < 4").await;
    pair.wait_in_step().await;
    catch_up(&mut pair.client, &ITEMS, &pair.database.client().await).await;
    catch_up(&mut inner, &ITEMS, &pair.database.client().await).await;
    pair.fail_over().await;
    if !pair.synced {
        return pair.starts_over().await;
    }
    pair.goes_on().await;
    pair.database.execute("UPDATE items SET v = 'start' WHERE id < 3").await;
    catch_up(&mut inner, &ITEMS, &pair.database.client().await).await;
    assert!(inner.refetches().is_empty(), "{:?}", inner.refetches());
    pair.ends_with("TimelineFollowed", "HistoryBroken").await;
}

/// The service is stopped, and started with another address in `DATABASE_URL`.
#[tokio::test]
async fn a_service_that_is_started_on_the_promoted_standby_carries_on() {
    let mut pair = Pair::start("moved").await;
    // Rows beside the log, too: they are from before the fork.
    let before = &pair.before;
    let offset = pair.client.offset().to_owned();
    let path =
        format!("/v1/shape?table=items&handle={before}&offset={offset}&subset__order_by=id&subset__limit=2");
    assert_eq!(pair.service.get(&path).await.status, 200);
    pair.wait_in_step().await;
    assert!(pair.service.terminate().await, "{}", pair.service.output());
    pair.fail_over_while_stopped().await;
    if !pair.synced {
        return pair.starts_over().await;
    }
    pair.goes_on().await;
    pair.ends_with("TimelineFollowed", "HistoryBroken").await;
}

/// A service that was killed cannot know what its clients had read last.
#[tokio::test]
async fn a_service_that_was_killed_before_a_promotion_starts_over() {
    let mut pair = Pair::start("killed").await;
    pair.service.kill9();
    pair.fail_over_while_stopped().await;
    pair.starts_over().await;
}

impl Pair {
    /// As [`Pair::fail_over`], at the standby's own address.
    async fn fail_over_while_stopped(&mut self) {
        self.primary.server.kill();
        self.service.settings_mut().database_url = self.standby.url(&self.database.name);
        self.database.url = self.standby.url(&self.database.name);
        self.promote().await;
        self.service.relaunch().expect("the process starts");
        self.service.wait_active(WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
    }
}

/// Clients have a transaction that the new server never had.
#[tokio::test]
async fn what_the_standby_never_had_ends_every_shape() {
    let mut pair = Pair::start("lost").await;
    pair.cut_off().await;
    pair.database.execute("UPDATE items SET v = 'lost'").await;
    catch_up(&mut pair.client, &ITEMS, &pair.database.client().await).await;
    pair.fail_over().await;
    pair.starts_over().await;
}

/// Rows that were read beside the stream may be of transactions that never were.
#[tokio::test]
async fn a_shape_that_was_made_behind_the_fork_ends_alone() {
    let mut pair = Pair::start("behind").await;
    pair.cut_off().await;
    // Grows the log without a transaction.
    pair.database.execute("SELECT pg_logical_emit_message(false, 'beyond', 'the fork')").await;
    let mut late = pair.service.follow(ShapeRequest::table("items").filtered("id > 0", &[]));
    catch_up(&mut late, &ITEMS, &pair.database.client().await).await;
    pair.fail_over().await;
    if !pair.synced {
        return pair.starts_over().await;
    }
    pair.goes_on().await;
    catch_up(&mut late, &ITEMS, &pair.database.client().await).await;
    assert_eq!(late.refetches().len(), 1, "{:?}", late.refetches());
    pair.ends_with("TimelineFollowed", " cause: Timeline").await;
}
