//! TLS, IPv6, poolers, and too few connections.

use crate::service::{ITEMS, catch_up};
use crate::support::{Service, ShapeRequest, database};

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
