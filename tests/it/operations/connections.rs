//! TLS, IPv6, poolers, too few connections, and positions at the end of their range.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use shapefold_xtask::directory::free_port;

use super::{shapefold, text};
use crate::service::{ITEMS, PrivatePostgres, catch_up, handle, health_message, journal_is_sound, until};
use crate::support::{Service, ShapeRequest, TestDatabase, database};

const TABLE: &str = "CREATE TABLE items (id int PRIMARY KEY, v text);
     INSERT INTO items SELECT i, 'start' FROM generate_series(1, 10) i";

/// Nobody listens on the IPv6 address of the host: the IPv4 address is tried next.
#[tokio::test]
async fn ipv6_falls_back_to_ipv4() {
    let database = database("ipv6").await;
    database.execute(TABLE).await;
    let url = database.url.replace("127.0.0.1", "localhost");
    let service = Service::start(&database, |settings| {
        settings.database_url = url;
        settings.set("ELECTRIC_DATABASE_USE_IPV6", "true");
    })
    .await;
    let mut client = service.follow(ShapeRequest::table("items"));
    catch_up(&mut client, &ITEMS, &database.client().await).await;
}

/// A certificate of that server and the CA that signed it, as files; a CA that did not, too.
struct Certificates {
    right: PathBuf,
    wrong: PathBuf,
}

fn authority() -> (String, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let certificate = params.self_signed(&key).expect("a certificate");
    (certificate.pem(), Issuer::new(params, key))
}

/// Turns TLS on in that server.
async fn encrypt(server: &PrivatePostgres, database: &TestDatabase) -> Certificates {
    let folder = server.folder.path();
    let cluster = folder.join("postgres/cluster");
    let owner = fs::metadata(&cluster).expect("the cluster is there");
    let (ca, issuer) = authority();
    let key = KeyPair::generate().expect("a key");
    let names = vec!["localhost".to_owned()];
    let params = CertificateParams::new(names).expect("a name");
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    for (name, pem) in [("server.crt", certificate.pem()), ("server.key", key.serialize_pem())] {
        let path = cluster.join(name);
        fs::write(&path, pem).expect("the cluster is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
        chown(&path, Some(owner.uid()), Some(owner.gid())).expect("it may be given to its owner");
    }
    let certificates = Certificates { right: folder.join("right.pem"), wrong: folder.join("wrong.pem") };
    fs::write(&certificates.right, ca).expect("the folder is ours");
    fs::write(&certificates.wrong, authority().0).expect("the folder is ours");
    database.execute("ALTER SYSTEM SET ssl = on").await;
    database.execute("SELECT pg_reload_conf()").await;
    until("the server has TLS", async || {
        (database.value("SHOW ssl").await.as_deref() == Some("on")).then_some(())
    })
    .await;
    certificates
}

/// What the doctor says about the connection.
fn connection(url: &str, ca: Option<&Path>) -> String {
    let mut environment =
        vec![("DATABASE_URL", url), ("ELECTRIC_INSECURE", "true"), ("ELECTRIC_STORAGE", "MEMORY")];
    let ca = ca.map(|path| path.to_str().expect("a plain name"));
    environment.extend(ca.map(|path| ("ELECTRIC_DATABASE_CA_CERTIFICATE_FILE", path)));
    let told = text(&shapefold(&["doctor"], &environment));
    let line = told.lines().find(|line| line.contains(" connection ") || line.contains(" settings "));
    let line = line.filter(|line| !line.contains("every variable")).map(str::to_owned);
    line.or_else(|| told.lines().find(|line| line.contains(" connection ")).map(str::to_owned))
        .unwrap_or(told)
}

/// `disable`, `allow`, `prefer`, `require`, with and without a CA, on servers with TLS, without, and with
/// nothing else.
#[tokio::test]
async fn every_sslmode_means_what_it_says() {
    let server = PrivatePostgres::start().await;
    let database = server.database("tlsmodes").await;
    let base = database.url.replace("127.0.0.1", "localhost");
    let url = |mode: &str| format!("{base}?sslmode={mode}");
    // Without TLS in the server.
    for (mode, part) in [("disable", "no TLS"), ("prefer", "no TLS"), ("allow", "no TLS")] {
        assert!(connection(&url(mode), None).contains(part), "{mode}: {}", connection(&url(mode), None));
    }
    let refused = connection(&url("require"), None);
    assert!(refused.contains("PROBLEM") && refused.contains("no trusted TLS connection"), "{refused}");
    let certificates = encrypt(&server, &database).await;
    for (mode, part) in [("disable", "no TLS"), ("prefer", ", TLS"), ("allow", ", TLS"), ("require", ", TLS")]
    {
        assert!(connection(&url(mode), None).contains(part), "{mode}: {}", connection(&url(mode), None));
    }
    for mode in ["prefer", "require"] {
        let verified = connection(&url(mode), Some(&certificates.right));
        assert!(verified.contains(", TLS"), "{mode}: {verified}");
        let other = connection(&url(mode), Some(&certificates.wrong));
        assert!(other.contains("PROBLEM") && other.contains("no trusted TLS connection"), "{mode}: {other}");
        // The certificate is for another name.
        let address = connection(&url(mode).replace("localhost", "127.0.0.1"), Some(&certificates.right));
        assert!(
            address.contains("PROBLEM") && address.contains("no trusted TLS connection"),
            "{mode}: {address}"
        );
    }
    let both = connection(&url("disable"), Some(&certificates.right));
    assert!(both.contains("PROBLEM") && both.contains("contradict each other"), "{both}");
    // A server that takes encrypted connections only, and one that takes none.
    let rules = server.folder.path().join("postgres/cluster/pg_hba.conf");
    let before = fs::read_to_string(&rules).expect("the rules are there");
    let rule =
        |kind: &str| format!("{kind} all all all scram-sha-256\n{kind} replication all all scram-sha-256\n");
    for (kind, mode, part) in [
        ("hostssl", "disable", "PROBLEM"),
        ("hostssl", "prefer", ", TLS"),
        ("hostnossl", "prefer", "no TLS"),
        ("hostnossl", "require", "PROBLEM"),
    ] {
        fs::write(&rules, rule(kind)).expect("the cluster is ours");
        reload(&server).await;
        let told = connection(&url(mode), None);
        assert!(told.contains(part), "{kind} {mode}: {told}");
    }
    fs::write(&rules, before).expect("the cluster is ours");
    reload(&server).await;
}

/// Has the server read its rules again. By a signal: whether SQL gets in depends on the rules.
async fn reload(server: &PrivatePostgres) {
    let pid =
        fs::read_to_string(server.folder.path().join("postgres/cluster/postmaster.pid")).expect("it runs");
    let pid: i32 = pid.lines().next().expect("a first line").parse().expect("a number");
    let pid = rustix::process::Pid::from_raw(pid).expect("a process");
    let log = server.server.log_file();
    let reloads = || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.matches("reloading configuration files").count()
    };
    let before = reloads();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("it is ours");
    until("the rules are read", async || (reloads() > before).then_some(())).await;
}

/// Every connection of the service is encrypted and verified, that of the stream, too; a server that
/// cannot show the right certificate gets no password.
#[tokio::test]
async fn the_stream_and_all_others_are_verified() {
    let server = PrivatePostgres::start().await;
    let database = server.database("tls").await;
    database.execute(TABLE).await;
    let certificates = encrypt(&server, &database).await;
    let url = database.url.replace("127.0.0.1", "localhost");
    let start = |ca: &Path| {
        let ca = ca.to_str().expect("a plain name").to_owned();
        let url = url.clone();
        Service::spawn(&database, |settings| {
            settings.database_url = url;
            settings.set("ELECTRIC_DATABASE_CA_CERTIFICATE_FILE", ca);
        })
    };
    let mut refused = start(&certificates.wrong);
    let message = health_message(&mut refused, "waiting", "no trusted TLS connection").await;
    assert!(message.contains("give the CA that signed its certificate"), "{message}");
    drop(refused);
    let mut service = start(&certificates.right);
    service.wait_active(crate::support::WAIT_DURATION_MAX).await.unwrap_or_else(|error| panic!("{error}"));
    let mut client = service.follow(ShapeRequest::table("items"));
    catch_up(&mut client, &ITEMS, &database.client().await).await;
    let kinds =
        "SELECT string_agg(DISTINCT backend_type || ' ' || ssl, ', ' ORDER BY backend_type || ' ' || ssl)
        FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE application_name LIKE 'shapefold%'";
    assert_eq!(database.value(kinds).await.as_deref(), Some("client backend true, walsender true"));
}

/// PgBouncer, ended when dropped.
struct Bouncer {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
}

impl Bouncer {
    /// In front of the server of that database; transactions share two connections.
    fn start(database: &TestDatabase) -> Bouncer {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).expect("the folder is ours");
        let port = free_port().expect("a free port");
        let (_, rest) = database.url.split_once("://").expect("a URL");
        let (credentials, rest) = rest.split_once('@').expect("a user");
        let (user, password) = credentials.split_once(':').expect("a password");
        let (host, _) = rest.split_once('/').expect("a path");
        let (host, server_port) = host.split_once(':').expect("a port");
        let log = folder.path().join("log");
        let settings = format!(
            "[databases]\n* = host={host} port={server_port} user={user} password={password}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
             pool_mode = transaction\ndefault_pool_size = 2\nlogfile = {}\nlog_connections = 1\n",
            log.display()
        );
        let file = folder.path().join("pgbouncer.ini");
        fs::write(&file, settings).expect("the folder is ours");
        let program =
            ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].into_iter().find(|path| Path::new(path).exists());
        let mut command = Command::new(program.unwrap_or("pgbouncer"));
        if rustix::process::geteuid().is_root() {
            // It refuses to run as root.
            command.args(["--user", "nobody"]);
        }
        let command = command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("pgbouncer is installed: ./dev test does so");
        Bouncer { child, port, folder }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Rows are read by way of the pooler, whose server connections change from transaction to transaction.
#[tokio::test]
async fn rows_may_come_by_way_of_a_pooler() {
    let database = database("pooler").await;
    database.execute(TABLE).await;
    let bouncer = Bouncer::start(&database);
    until("the pooler listens", async || {
        tokio::net::TcpStream::connect(("127.0.0.1", bouncer.port)).await.ok().map(drop)
    })
    .await;
    let url = format!("postgresql://anybody:x@127.0.0.1:{}/{}?sslmode=disable", bouncer.port, database.name);
    let mut service = Service::start(&database, |settings| {
        settings.set("ELECTRIC_POOLED_DATABASE_URL", url).set("ELECTRIC_DB_POOL_SIZE", "12");
    })
    .await;
    let clients = (0..12).map(|id| {
        let client = service.follow(ShapeRequest::table("items").filtered("id > $1", &[&id.to_string()]));
        let database = &database;
        async move {
            let (mut client, postgres) = (client, database.client().await);
            catch_up(&mut client, &ITEMS, &postgres).await;
            handle(&client)
        }
    });
    let handles = futures_util::future::join_all(clients).await;
    assert_eq!(handles.len(), 12);
    let path = "/v1/shape?table=items&offset=now&subset__order_by=id&subset__limit=3";
    let subset = service.get(path).await;
    assert_eq!(subset.json()["data"].as_array().map(Vec::len), Some(3), "{}", subset.text());
    let log = bouncer.log();
    assert!(log.contains(&database.name), "nothing came by way of the pooler:\n{log}");
    assert!(service.terminate().await, "{}", service.output());
    journal_is_sound(service.data_dir());
}

/// Postgres has no connection left: told with the words of the contract, and right again by itself.
#[tokio::test]
async fn too_few_connections_are_a_503_and_pass() {
    let database = database("fewconn").await;
    let user = format!("{}_user", database.name);
    database
        .execute(&format!(
            "CREATE ROLE {user} LOGIN REPLICATION PASSWORD 'pw'; GRANT CREATE ON DATABASE {} TO {user}; {TABLE};
             ALTER TABLE items OWNER TO {user}",
            database.name
        ))
        .await;
    let url = database.url_as(&user, "pw");
    let mut service = Service::start(&database, |settings| settings.database_url = url).await;
    let first = service.get("/v1/shape?table=items&offset=-1").await;
    assert_eq!(first.status, 200, "{}", first.text());
    database
        .execute(&format!(
            "ALTER ROLE {user} CONNECTION LIMIT 0;
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE usename = '{user}' AND backend_type = 'client backend'"
        ))
        .await;
    let path = "/v1/shape?table=items&offset=-1&where=id%20%3E%205";
    let refused = until("there is no connection", async || {
        let answer = service.get(path).await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    let message = refused.json()["message"].as_str().unwrap_or_default().to_owned();
    assert_eq!(message, "Database connection not available");
    assert_eq!(refused.header("electric-internal-known-error"), Some("true"));
    let known = service.get("/v1/shape?table=items&offset=-1").await;
    assert_eq!(known.status, 200, "shapes that exist are served: {}", known.text());
    database.execute(&format!("ALTER ROLE {user} CONNECTION LIMIT -1")).await;
    until("it works again", async || (service.get(path).await.status == 200).then_some(())).await;
    assert!(service.terminate().await, "{}", service.output());
    database.execute(&format!("DROP OWNED BY {user} CASCADE; DROP ROLE {user}")).await;
}

/// Positions beyond what a signed number holds, and the last ones there are.
#[tokio::test]
async fn the_log_may_reach_the_end_of_its_range() {
    for segment in ["000000017FFFFFFF000000FF", "00000001FFFFFFFF000000F0"] {
        let mut server = PrivatePostgres::start_with("pg_resetwal").await;
        let database = server.database("endoflog").await;
        database.execute(TABLE).await;
        server.stop();
        let cluster = server.folder.path().join("postgres/cluster");
        let program = server.server.installation().program("pg_resetwal").expect("a server program");
        let owner = fs::metadata(&cluster).expect("the cluster is there").uid();
        let mut command = Command::new(program);
        if rustix::process::geteuid().is_root() {
            std::os::unix::process::CommandExt::uid(&mut command, owner);
        }
        let reset = command.args(["-l", segment]).arg(&cluster).current_dir("/").output().expect("it runs");
        assert!(reset.status.success(), "{}", text(&reset));
        server.start_again().await;
        let mut service = Service::start(&database, |settings| {
            settings
                .set("ELECTRIC_PROMETHEUS_PORT", "0")
                .set("ELECTRIC_SYSTEM_METRICS_POLL_INTERVAL", "100ms");
        })
        .await;
        let mut client = service.follow(ShapeRequest::table("items"));
        client.sync().await.expect("the shape is made");
        let mut newest = 0_u64;
        for round in 0..3 {
            database.execute(&format!("UPDATE items SET v = 'round {round}'; SELECT pg_switch_wal()")).await;
            catch_up(&mut client, &ITEMS, &database.client().await).await;
            let (lsn, _) = client.offset().split_once('_').expect("an offset has two parts");
            let lsn: u64 = lsn.parse().expect("a number");
            assert!(lsn > newest, "{segment}: {lsn} after {newest}");
            newest = lsn;
        }
        assert!(newest > i64::MAX as u64, "{segment}: {newest} is past what is signed");
        assert!(client.refetches().is_empty(), "{:?}", client.refetches());
        until("the metrics follow", async || {
            super::metric(&service, "shapefold_wal_gap_bytes").await.filter(|gap| (0.0..1e9).contains(gap))
        })
        .await;
        assert!(service.terminate().await, "{}", service.output());
        journal_is_sound(service.data_dir());
    }
}
