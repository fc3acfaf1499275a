//! What a running service tells about itself beside its own port: the listener for Prometheus, and what is
//! sent to a collector.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::cli::operations::Operations;
use crate::runtime::handle::Service;
use crate::server;
use crate::telemetry::{Destination, DestinationError, Exporter, Sources, Statsd, Tracer, tap};

/// Settings of it.
#[derive(Clone, Debug)]
pub struct Export {
    prometheus_port: Option<u16>,
    collector: Option<Destination>,
    sampling_ratio: f64,
    period: Duration,
    /// Host of StatsD, with or without a port, and how often it is told.
    statsd: Option<(String, Duration)>,
    excluded_spans: Vec<String>,
    prints_spans: bool,
}

/// What runs.
#[derive(Debug, Default)]
pub struct Exporting {
    tasks: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Exporting {
    /// Sends once more what there is.
    pub async fn end(self) {
        let (stops, tasks): (Vec<_>, Vec<_>) = self.tasks.into_iter().unzip();
        drop(stops);
        for task in tasks {
            // It has its own limit of time; a panic in it has been told by then.
            let _ended = task.await;
        }
    }
}

impl Export {
    /// # Errors
    /// A setting that is wrong, with the name of its variable.
    pub fn new(operations: &Operations) -> Result<Export, String> {
        for flag in words(&operations.feature_flags) {
            tracing::error!(flag, "ELECTRIC_FEATURE_FLAGS names a feature that is not known");
        }
        Ok(Export {
            prometheus_port: operations.prometheus_port,
            collector: collector(operations)?,
            sampling_ratio: operations.otel_sampling_ratio,
            period: operations.otel_export_period,
            statsd: (operations.statsd_host.clone().filter(|host| !host.is_empty()))
                .map(|host| (host, operations.system_metrics_poll_interval)),
            excluded_spans: words(&operations.exclude_spans),
            prints_spans: operations.otel_debug,
        })
    }

    /// Starts what is configured.
    ///
    /// # Errors
    /// The port of the metrics cannot be listened on.
    pub async fn begin(&self, ip: IpAddr, service: &Service) -> Result<Exporting, String> {
        if let Some(port) = self.prometheus_port {
            let address = SocketAddr::new(ip, port);
            let told = |error| format!("ELECTRIC_PROMETHEUS_PORT: cannot listen on {address}: {error}");
            let listener = TcpListener::bind(address).await.map_err(told)?;
            let address = listener.local_addr().map_err(told)?;
            tracing::info!("metrics at http://{address}/metrics");
            tokio::spawn(server::serve_metrics(listener, service.metrics().clone()));
        }
        let metrics = service.metrics();
        let mut tasks = Vec::new();
        if let Some((host, period)) = &self.statsd {
            let (stop, stopped) = oneshot::channel();
            tasks.push((stop, tokio::spawn(Statsd::new(host, metrics.clone(), *period).run(stopped))));
        }
        if self.collector.is_some() || self.prints_spans {
            let (tracer, spans) = Tracer::new(self.sampling_ratio, metrics.spans_dropped.clone());
            service.set_tracer(tracer.without(self.excluded_spans.clone()));
            let lines = self.collector.as_ref().and_then(|_| tap(metrics.lines_dropped.clone()));
            let sources = Sources { spans, lines };
            let (destination, metrics) = (self.collector.clone(), metrics.clone());
            let exporter = Exporter::new(destination, metrics, sources, self.period, self.prints_spans);
            let (stop, stopped) = oneshot::channel();
            tasks.push((stop, tokio::spawn(exporter.run(stopped))));
        }
        Ok(Exporting { tasks })
    }
}

/// Between commas.
fn words(list: &str) -> Vec<String> {
    list.split(',').map(str::trim).filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

fn collector(operations: &Operations) -> Result<Option<Destination>, String> {
    let Some(endpoint) = operations.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty()) else {
        return Ok(None);
    };
    let named = |name: &'static str| move |error: DestinationError| format!("{name}: {error}");
    let random = format!("{:032x}", rand::random::<u128>());
    let instance = operations.instance_id.as_deref().unwrap_or(&random);
    let own = [
        ("service.name", operations.service_name.as_str()),
        ("service.version", env!("CARGO_PKG_VERSION")),
        ("service.instance.id", instance),
        ("telemetry.sdk.language", "rust"),
    ];
    let environment = operations.otel_resource_attributes.as_deref().unwrap_or_default();
    let mut destination = Destination::new(endpoint)
        .map_err(named("ELECTRIC_OTLP_ENDPOINT"))?
        .with_resource(&own, environment)
        .map_err(named("OTEL_RESOURCE_ATTRIBUTES"))?;
    for (variable, header, value) in [
        ("ELECTRIC_HNY_API_KEY", "x-honeycomb-team", &operations.hny_api_key),
        ("ELECTRIC_HNY_DATASET", "x-honeycomb-dataset", &operations.hny_dataset),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            destination = destination.with_header(header, value).map_err(named(variable))?;
        }
    }
    Ok(Some(destination))
}
