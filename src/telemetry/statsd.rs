//! Metrics by UDP: StatsD, with Datadog's tags, as the Electric sync service sends them (contract 5.4).
//!
//! Counters are told as what they grew by, gauges as they are. Of a histogram the number of values and
//! their mean are told: its buckets are for Prometheus and OTLP.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use prometheus::proto::{Metric, MetricFamily, MetricType};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;

use super::Metrics;
use super::otlp::name_of;

/// Where StatsD listens if nothing else is said.
const PORT: u16 = 8_125;
/// A datagram that no network on the way has to split.
const DATAGRAM_BYTES_MAX: usize = 1_432;

/// Sends metrics until it is told to end.
#[derive(Debug)]
pub struct Statsd {
    host: String,
    port: u16,
    metrics: Arc<Metrics>,
    period: Duration,
    told: Told,
    /// From which all of it is sent: a receiver may hold on to the first port that it hears from.
    socket: Option<UdpSocket>,
}

/// Counters as they were told last, by name and tags.
#[derive(Debug, Default)]
struct Told(HashMap<String, f64>);

impl Statsd {
    /// To a host, or to `host:port`, every `period`.
    #[must_use]
    pub fn new(host: &str, metrics: Arc<Metrics>, period: Duration) -> Statsd {
        let (host, port) = match host.rsplit_once(':').map(|(host, port)| (host, port.parse())) {
            // More colons are those of an IPv6 address.
            Some((host, Ok(port))) if !host.contains(':') || host.ends_with(']') => (host, port),
            Some(_) | None => (host, PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Statsd { host, port, metrics, period, told: Told::default(), socket: None }
    }

    /// Runs until `stop` resolves, then sends once more what there is.
    pub async fn run(mut self, mut stop: oneshot::Receiver<()>) {
        let mut tick = tokio::time::interval(self.period);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last = false;
        while !last {
            tokio::select! {
                // Its sender is dropped where the process ends.
                _ = &mut stop => last = true,
                _ = tick.tick() => {}
            }
            let lines = self.told.lines(&self.metrics.gather());
            let result = match self.send(&datagrams(&lines)).await {
                Ok(()) => "delivered",
                Err(error) => {
                    tracing::warn!(%error, "metrics could not be sent to StatsD");
                    "failed"
                }
            };
            self.metrics.exports.with_label_values(&["statsd", result]).inc();
        }
    }

    async fn send(&mut self, datagrams: &[String]) -> std::io::Result<()> {
        // Anew each time: the name may have moved.
        let found: Vec<SocketAddr> =
            tokio::net::lookup_host((self.host.as_str(), self.port)).await?.collect();
        let address = chosen(&found).ok_or(std::io::ErrorKind::NotFound)?;
        let fits =
            |socket: &UdpSocket| socket.local_addr().is_ok_and(|local| local.is_ipv4() == address.is_ipv4());
        let socket = match self.socket.take().filter(fits) {
            Some(socket) => socket,
            None if address.is_ipv4() => UdpSocket::bind("0.0.0.0:0").await?,
            None => UdpSocket::bind("[::]:0").await?,
        };
        let socket = self.socket.insert(socket);
        for datagram in datagrams {
            socket.send_to(datagram.as_bytes(), address).await?;
        }
        Ok(())
    }
}

/// As Electric: over IPv4, if the name has such an address. `localhost` often begins with `::1`, where few
/// agents listen, and nobody is told of a datagram that nobody takes.
fn chosen(addresses: &[SocketAddr]) -> Option<SocketAddr> {
    addresses.iter().find(|address| address.is_ipv4()).or(addresses.first()).copied()
}

impl Told {
    /// A line for each metric that has something to tell.
    fn lines(&mut self, families: &[MetricFamily]) -> Vec<String> {
        let mut lines = Vec::new();
        for family in families {
            let name = name_of(family.name());
            for metric in family.get_metric() {
                let tags = tags(metric);
                match family.get_field_type() {
                    MetricType::COUNTER => {
                        self.count(&mut lines, &name, &tags, metric.get_counter().get_value());
                    }
                    MetricType::HISTOGRAM => {
                        let histogram = metric.get_histogram();
                        let (count, sum) = (histogram.get_sample_count() as f64, histogram.get_sample_sum());
                        let count = self.count(&mut lines, &format!("{name}.count"), &tags, count);
                        let sum = self.grown(format!("{name}.sum{tags}"), sum);
                        if count > 0.0 {
                            lines.push(format!("{name}.mean:{}|g{tags}", sum / count));
                        }
                    }
                    // Nothing else is registered.
                    MetricType::GAUGE | MetricType::SUMMARY | MetricType::UNTYPED => {
                        let value = metric.get_gauge().get_value();
                        if value.is_finite() {
                            lines.push(format!("{name}:{value}|g{tags}"));
                        }
                    }
                }
            }
        }
        lines
    }

    /// Tells what a counter grew by, if it did.
    fn count(&mut self, lines: &mut Vec<String>, name: &str, tags: &str, value: f64) -> f64 {
        let grown = self.grown(format!("{name}{tags}"), value);
        if grown > 0.0 {
            lines.push(format!("{name}:{grown}|c{tags}"));
        }
        grown
    }

    fn grown(&mut self, key: String, value: f64) -> f64 {
        value - self.0.insert(key, value).unwrap_or_default()
    }
}

/// `|#name:value,…`; empty without labels.
fn tags(metric: &Metric) -> String {
    let mut tags = String::new();
    for label in metric.get_label() {
        let begin = if tags.is_empty() { "|#" } else { "," };
        // Into memory: cannot fail.
        let _written = write!(tags, "{begin}{}:{}", label.name(), label.value());
    }
    tags
}

/// Lines, as many in a datagram as it takes.
fn datagrams(lines: &[String]) -> Vec<String> {
    let mut datagrams: Vec<String> = Vec::new();
    for line in lines {
        match datagrams.last_mut() {
            Some(last) if last.len() + 1 + line.len() <= DATAGRAM_BYTES_MAX => {
                last.push('\n');
                last.push_str(line);
            }
            Some(_) | None => datagrams.push(line.clone()),
        }
    }
    datagrams
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_with_and_without_a_port() {
        for (text, host, port) in [
            ("statsd", "statsd", 8_125),
            ("statsd:9125", "statsd", 9_125),
            ("10.0.0.1:1", "10.0.0.1", 1),
            ("::1", "::1", 8_125),
            ("[::1]:9", "::1", 9),
        ] {
            let statsd = Statsd::new(text, Arc::default(), Duration::from_secs(1));
            assert_eq!((statsd.host.as_str(), statsd.port), (host, port), "{text}");
        }
    }

    #[test]
    fn of_two_families_the_older_one_is_told() {
        let [four, six]: [SocketAddr; 2] =
            ["127.0.0.1:8125", "[::1]:8125"].map(|text| text.parse().expect("an address"));
        assert_eq!(chosen(&[six, four]), Some(four));
        assert_eq!(chosen(&[six]), Some(six));
        assert_eq!(chosen(&[]), None);
    }

    /// `nc -ul` and others take datagrams of one sender only: the first.
    #[tokio::test]
    async fn all_datagrams_come_from_one_port() {
        let receiver = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let host = receiver.local_addr().expect("bound").to_string();
        let mut statsd = Statsd::new(&host, Arc::default(), Duration::from_secs(1));
        let mut senders = Vec::new();
        for text in ["a:1|g", "b:2|g"] {
            statsd.send(&[text.to_owned()]).await.expect("it is sent");
            let mut buffer = [0; 16];
            let (len, sender) = receiver.recv_from(&mut buffer).await.expect("a datagram");
            assert_eq!(&buffer[..len], text.as_bytes());
            senders.push(sender);
        }
        assert_eq!(senders[0], senders[1]);
    }

    #[test]
    fn counters_are_told_as_what_they_grew_by() {
        let metrics = Metrics::new();
        let mut told = Told::default();
        let counts = |told: &mut Told| -> Vec<String> {
            told.lines(&metrics.gather()).into_iter().filter(|line| !line.contains("|g")).collect()
        };
        assert_eq!(counts(&mut told), Vec::<String>::new());
        metrics.requests.with_label_values(&["200"]).inc_by(3);
        metrics.http_requests.with_label_values(&["shape", "409"]).inc();
        assert_eq!(
            counts(&mut told),
            [
                "electric.plug.serve_shape.requests.count:3|c|#status:200",
                "shapefold.http_requests_total:1|c|#route:shape,status:409"
            ]
        );
        metrics.requests.with_label_values(&["200"]).inc_by(4);
        assert_eq!(counts(&mut told), ["electric.plug.serve_shape.requests.count:4|c|#status:200"]);
    }

    #[test]
    fn gauges_are_told_as_they_are_and_histograms_by_their_mean() {
        let metrics = Metrics::new();
        let mut told = Told::default();
        metrics.shapes_total.set(7);
        metrics.oldest_pending_seconds.set(f64::INFINITY);
        for seconds in [0.5, 1.5] {
            metrics.flush_seconds.observe(seconds);
        }
        let lines = told.lines(&metrics.gather());
        let has = |line: &str| assert!(lines.iter().any(|told| told == line), "{line} in {lines:?}");
        has("electric.shapes.total_shapes.count:7|g");
        has("shapefold.flush_seconds.count:2|c");
        has("shapefold.flush_seconds.mean:1|g");
        assert!(!lines.iter().any(|line| line.contains("inf")), "{lines:?}");
        let again = told.lines(&metrics.gather());
        assert!(!again.iter().any(|line| line.contains("flush_seconds")), "{again:?}");
    }

    #[test]
    fn datagrams_are_whole_lines() {
        let lines: Vec<String> = (0..200).map(|n| format!("shapefold.some_metric_{n}:{n}|g")).collect();
        let datagrams = datagrams(&lines);
        assert!(datagrams.len() > 1);
        assert!(datagrams.iter().all(|datagram| datagram.len() <= DATAGRAM_BYTES_MAX));
        assert_eq!(datagrams.join("\n"), lines.join("\n"));
    }
}
