//! Configuration and operations: contract, sections 5 and 6.

mod collector;
mod configuration;
mod connections;
mod descriptors;
mod doctor;
mod failover;
mod limits;
mod log;
mod slots;
mod telemetry;

use std::process::{Command, Output};

use crate::support::{BINARY, HttpClient, Process, Response, said};

/// Runs the binary with nothing in its environment but these variables.
fn shapefold(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(BINARY);
    command.args(arguments).env_clear().envs(environment.iter().copied());
    command.output().expect("the binary runs")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// One scrape of the metrics of a service that was started with `ELECTRIC_PROMETHEUS_PORT=0`.
async fn scrape(service: &Process) -> Response {
    let said = said(service, "metrics at http://");
    let address = said.split('/').next().expect("an address ends in a path").parse().expect("an address");
    let mut http = HttpClient::new(address);
    http.get("/metrics").await.expect("the metrics are served")
}

/// The value of one line of metrics, with its labels as they are written.
pub async fn metric(service: &Process, name: &str) -> Option<f64> {
    let text = scrape(service).await.text();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.map(|value| value.parse().expect("a number"))
}
