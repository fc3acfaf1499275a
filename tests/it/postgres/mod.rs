//! The Postgres side against a real server.

mod auth;
mod catalog;
mod publication;
mod resume;
mod silence;
mod snapshot;
mod stream;
mod types;

use std::sync::Arc;

use shapefold::domain::{
    Change, LogMode, RelationName, Replica, ShapeDefinition, Tuple, Value, parse_relation_name,
};
use shapefold::postgres::{ConnectOptions, DatabaseUrl, SqlClient, TcpOptions, Tls, connect, inspect};
use shapefold::replication::{
    Assembler, Failover, HistoryBroken, Ready, ReplicationSettings, SlotInfo, StatusSender, StreamItem,
    Transaction, TransactionStream, connect_and_identify,
};
use shapefold::snapshot::{RowBatch, open};

use crate::support::{TestDatabase, database};

/// A database, a connection to it, and the settings to stream from it.
struct Harness {
    sql: SqlClient,
    settings: ReplicationSettings,
    spill_dir: tempfile::TempDir,
    // Last: the connections above are closed before it is dropped.
    database: TestDatabase,
}

impl Harness {
    async fn new(hint: &str) -> Harness {
        let database = database(hint).await;
        let url = DatabaseUrl::parse(&database.url).expect("a database URL");
        let connect_options = options();
        let sql = connect(&url, &connect_options).await.expect("a connection");
        // Slots are shared by all databases of a cluster, so the name of this one is part of theirs.
        let settings = ReplicationSettings {
            failover: Failover::WherePossible,
            slot: format!("slot_{}", url.database()),
            publication: format!("publication_{}", url.database()),
            url,
            connect: connect_options,
            temporary_slot: false,
        };
        let spill_dir = tempfile::tempdir().expect("a directory");
        Harness { sql, settings, spill_dir, database }
    }

    async fn run(&self, sql: &str) {
        self.sql.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    async fn connection(&self) -> SqlClient {
        connect(&self.settings.url, &self.settings.connect).await.expect("a connection")
    }

    async fn ready(&self) -> Ready {
        connect_and_identify(&self.settings, &mut |_| {}).await.expect("a connection that is ready")
    }

    async fn stream(&self) -> Stream {
        self.stream_with_spill(8 << 20).await
    }

    async fn stream_with_spill(&self, spill_bytes: usize) -> Stream {
        let ready = self.ready().await;
        let (slot, history_broken) = (ready.slot.clone(), ready.history_broken);
        let lsn = shapefold::domain::Lsn(0);
        let stream =
            ready.client.start(&self.settings.slot, &self.settings.publication, lsn).await.expect("a stream");
        let status = stream.status();
        let assembler = Assembler::new(self.spill_dir.path().to_owned(), spill_bytes);
        let transactions = TransactionStream::new(stream, assembler);
        Stream { transactions, status, slot, history_broken, items: Vec::new() }
    }

    /// Publishes a table and waits for its fence.
    async fn publish(&self, table: &str) {
        let relation = self.relation(table).await;
        let ensured =
            shapefold::replication::ensure_table(&self.sql, &self.settings.publication, &relation, false)
                .await
                .expect("a published table");
        ensured.fence.wait(&self.sql, WAIT_MAX).await.expect("no writer is open");
    }

    async fn relation(&self, table: &str) -> shapefold::domain::Relation {
        let name = name(table);
        inspect(&self.sql, &name).await.expect("the catalog").expect("the table exists")
    }

    async fn definition(&self, table: &str, where_sql: Option<&str>) -> ShapeDefinition {
        let relation = self.relation(table).await;
        let mut columns: Vec<String> = relation.columns.iter().map(|column| column.name.clone()).collect();
        columns.sort();
        ShapeDefinition {
            relation: std::sync::Arc::new(relation),
            where_sql: where_sql.map(str::to_owned),
            columns,
            columns_named: false,
            replica: Replica::Default,
            log: LogMode::Full,
            dependencies: Vec::new(),
            selects: Vec::new(),
        }
    }

    /// All rows of a snapshot, as text in the order of the definition's columns.
    async fn snapshot(&self, definition: &ShapeDefinition) -> Vec<Vec<Option<String>>> {
        let opened = open(self.connection().await, definition).await.expect("a snapshot");
        let mut rows = opened.rows().await.expect("rows");
        let mut batch = RowBatch::new();
        let mut all = Vec::new();
        while rows.next_batch(&mut batch).await.expect("a batch") {
            batch.for_each(&mut |row| all.push(row.iter().map(|value| text(*value)).collect()));
        }
        rows.finish().await.expect("the connection comes back");
        all
    }
}

/// Tests that wait for something give up after this; none relies on it.
const WAIT_MAX: std::time::Duration = std::time::Duration::from_secs(30);

fn options() -> ConnectOptions {
    ConnectOptions { tls: Tls::unverified().expect("TLS"), tcp: TcpOptions::default() }
}

fn name(table: &str) -> RelationName {
    parse_relation_name(table).expect("a table name")
}

fn text(value: Value<'_>) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Unchanged => Some("(unchanged)".to_owned()),
        Value::Text(text) => Some(String::from_utf8(text.to_vec()).expect("UTF-8")),
    }
}

/// A running stream.
struct Stream {
    transactions: TransactionStream,
    status: StatusSender,
    slot: SlotInfo,
    history_broken: Option<HistoryBroken>,
    items: Vec<StreamItem>,
}

impl Stream {
    /// The next transaction that has changes.
    async fn transaction(&mut self) -> Arc<Transaction> {
        let next = async {
            loop {
                while !self.items.is_empty() {
                    if let StreamItem::Transaction(transaction) = self.items.remove(0)
                        && transaction.changes > 0
                    {
                        return transaction;
                    }
                }
                self.transactions.next_batch(&mut self.items).await.expect("the stream goes on");
            }
        };
        tokio::time::timeout(WAIT_MAX, next).await.expect("a transaction comes")
    }

    /// The next transaction, one line per change.
    async fn shown(&mut self) -> Vec<String> {
        show(&*self.transaction().await)
    }
}

fn show(transaction: &Transaction) -> Vec<String> {
    let mut lines = Vec::new();
    transaction
        .for_each_chunk(&mut |changes| lines.extend(changes.iter().map(show_change)))
        .expect("readable changes");
    lines
}

fn show_change(change: &Change) -> String {
    let op = change.op();
    let table = change.relation().map_or("", |relation| relation.name.table.as_str());
    match change {
        Change::Insert { new, .. } => format!("{op} {table} + {}", show_tuple(new)),
        Change::Update { old, new, .. } => {
            let old = old.as_ref().map_or("?".to_owned(), show_tuple);
            format!("{op} {table} {old} > {}", show_tuple(new))
        }
        Change::Delete { old, .. } => format!("{op} {table} - {}", show_tuple(old)),
        Change::Truncate { relations, .. } => format!("{op} truncate {}", relations.len()),
    }
}

fn show_tuple(tuple: &Tuple) -> String {
    let values: Vec<String> =
        (0..tuple.len()).map(|index| text(tuple.get(index)).unwrap_or_else(|| "NULL".to_owned())).collect();
    values.join(",")
}

/// The test's database, for another role.
fn url_as(harness: &Harness, role: &str, password: Option<&str>) -> DatabaseUrl {
    let encode = |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
    let password = password.map_or(String::new(), |password| format!(":{}", encode(password)));
    let server = harness.database.url.rsplit_once('@').expect("a URL with a user").1;
    DatabaseUrl::parse(&format!("postgresql://{role}{password}@{server}")).expect("a database URL")
}

async fn connect_as(
    harness: &Harness,
    role: &str,
    password: Option<&str>,
) -> Result<SqlClient, shapefold::postgres::PgError> {
    connect(&url_as(harness, role, password), &harness.settings.connect).await
}
