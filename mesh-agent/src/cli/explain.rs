//! `mesh-agent explain`: asks the agent what becomes of a connection, and prints the walk in the connection's order.
//!
//! Exit codes: 0 let through, 1 refused (by some endpoints or by all), 2 no answer: the question is unclear or no
//! agent answers.

use std::fmt::Write as _;
use std::process::ExitCode;

use super::place::Place;
use super::{Output, fail, plain, show};
use crate::admin::{ExplainRequest, Request};
use crate::explain::{Explanation, KernelState, Path, Reply, RequestQuestion, Verdict};

const NO_ANSWER: u8 = 2;

/// Arguments of `explain`.
#[derive(Debug, clap::Args)]
pub struct ExplainArgs {
    /// Who connects: namespace/pod or an address
    source: String,
    /// What it dials: namespace/service, namespace/pod, name.namespace.svc or an address, also with :PORT
    destination: String,
    /// The port it dials: of a service its own, of a pod the application's
    port: Option<u16>,
    /// The method of a request on it, to see the route and rule it meets
    method: Option<String>,
    /// The path of that request, with its query
    path: Option<String>,
    /// A header of that request, NAME:VALUE; may be given several times
    #[arg(short = 'H', long = "header", requires = "method")]
    headers: Vec<String>,
    #[command(flatten)]
    place: Place,
    /// How to print it
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

pub(super) fn run(args: ExplainArgs) -> ExitCode {
    let asked = match request(&args) {
        Ok(asked) => asked,
        Err(error) => {
            let _ = fail(&plain(&error));
            return ExitCode::from(NO_ANSWER);
        }
    };
    let mut place = args.place;
    if place.is_the_cluster() && args.source.contains('/') {
        // The source's own agent knows best.
        place.pod = Some(args.source.clone());
    }
    let request =
        ExplainRequest { source: args.source, destination: args.destination, port: args.port, request: asked };
    let explanation = match place.ask(&Request::Explain(request)) {
        Ok(Reply::Explained(explanation)) => explanation,
        Ok(Reply::Unclear(error)) | Err(error) => {
            let _ = fail(&plain(&error));
            return ExitCode::from(NO_ANSWER);
        }
    };
    if show(&explanation, args.output, |explanation| render(explanation)) != ExitCode::SUCCESS {
        return ExitCode::from(NO_ANSWER);
    }
    match explanation.verdict {
        Verdict::Allowed => ExitCode::SUCCESS,
        Verdict::Refused | Verdict::Mixed => ExitCode::FAILURE,
    }
}

/// The request that is asked about.
fn request(args: &ExplainArgs) -> Result<Option<RequestQuestion>, String> {
    let Some(method) = &args.method else { return Ok(None) };
    let header = |text: &String| {
        let (name, value) = text.split_once(':').ok_or_else(|| format!("`{text}` is not NAME:VALUE"))?;
        Ok((name.trim().to_owned(), value.trim().to_owned()))
    };
    let headers = args.headers.iter().map(header).collect::<Result<_, String>>()?;
    let path = args.path.clone().unwrap_or_else(|| "/".to_owned());
    Ok(Some(RequestQuestion { method: method.to_ascii_uppercase(), path, headers }))
}

/// The walk as text.
fn render(explanation: &Explanation) -> String {
    let Explanation { source, destination, .. } = explanation;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let from = source.pod.as_deref().or(source.ip.as_deref()).unwrap_or("?");
    let to = destination.dialled.join(" or ");
    let (node, generation) = (&explanation.node, explanation.generation);
    let _ = writeln!(text, "{from} to {to}, by generation {generation} of {node}\n");
    let ip = source.ip.as_ref().filter(|_| source.pod.is_some()).map_or(String::new(), |ip| format!(" at {ip}"));
    line(&mut text, "source", &format!("{from}{ip}: {}", source.state));
    if let Some(identity) = &source.identity {
        line(&mut text, "", &format!("proves {identity}"));
    }
    line(&mut text, "destination", &format!("{} {}: {}", destination.kind, destination.name, destination.state));
    let none = ["none applies".to_owned()];
    let exclusions = if explanation.exclusions.is_empty() { &none[..] } else { &explanation.exclusions };
    for (index, exclusion) in exclusions.iter().enumerate() {
        line(&mut text, if index == 0 { "exclusions" } else { "" }, exclusion);
    }
    if let Some(route) = &explanation.route {
        let rule = route.rule.iter().map(String::as_str);
        for (index, said) in rule.chain(route.said.iter().map(String::as_str)).enumerate() {
            line(&mut text, if index == 0 { "route" } else { "" }, said);
        }
    }
    for path in &explanation.paths {
        text.push('\n');
        render_path(&mut text, path, explanation.paths.len() > 1);
    }
    text.push('\n');
    render_kernel(&mut text, &explanation.kernel);
    let verdict = match explanation.verdict {
        Verdict::Allowed => "ALLOWED",
        Verdict::Refused => "REFUSED",
        Verdict::Mixed => "MIXED: some endpoints refuse it",
    };
    line(&mut text, "verdict", verdict);
    text
}

fn render_path(text: &mut String, path: &Path, one_of_many: bool) {
    let share = if one_of_many { format!(" ({:.0} %)", path.share * 100.0) } else { String::new() };
    let at = match (&path.pod, path.endpoint.is_empty()) {
        (_, true) => "no endpoint is reached".to_owned(),
        (Some(pod), _) => format!("{} {pod} on {}", path.endpoint, path.node),
        (None, _) => path.endpoint.clone(),
    };
    line(text, "endpoint", &format!("{at}{share}"));
    line(text, "  lane", &format!("{}: {}", path.lane, path.why));
    if let Some(egress) = &path.egress {
        line(text, "  egress", egress);
    }
    if let Some(mode) = &path.peer_mode {
        line(text, "  peer mode", mode);
    }
    let rule = path.rule.as_ref().map_or(String::new(), |rule| format!(" by {rule}"));
    let word = if path.allowed { "allowed" } else { path.outcome.as_str() };
    let reason = if path.reason.is_empty() { String::new() } else { format!(": {}", path.reason) };
    line(text, "  policy", &format!("{word}{rule}{reason}"));
    if let Some(request) = &path.request {
        line(text, "  request", request);
    }
    for (index, place) in path.enforced.iter().enumerate() {
        line(text, if index == 0 { "  enforced" } else { "" }, place);
    }
    if !path.exits.is_empty() {
        line(text, "  counted", &path.exits.join(", "));
    }
}

fn render_kernel(text: &mut String, kernel: &KernelState) {
    let asked = match (kernel.asked, kernel.behind.is_empty()) {
        (0, _) => None,
        (asked, true) => Some(format!("the live maps say the same ({asked} asked)")),
        (_, false) => Some("THE LIVE MAPS ARE BEHIND; what they say holds until they are not:".to_owned()),
    };
    let nothing = (kernel.asked == 0 && kernel.elsewhere.is_empty()).then(|| "has no part in it".to_owned());
    let lines = asked.iter().chain(&kernel.behind).chain(&kernel.elsewhere).chain(&nothing);
    for (index, said) in lines.enumerate() {
        line(text, if index == 0 { "kernel" } else { "" }, said);
    }
}

fn line(text: &mut String, head: &str, said: &str) {
    let _ = writeln!(text, "{head:<13}{}", plain(said));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::explain::{Destination, RouteReport, Source};

    fn sample() -> Explanation {
        let path = Path {
            share: 1.0 / 3.0,
            endpoint: "10.0.0.2:7000".into(),
            pod: Some("shop/near".into()),
            node: "a".into(),
            lane: "native".into(),
            why: "both ends are captured pods of a".into(),
            allowed: true,
            outcome: "ok".into(),
            rule: Some("shop/guard".into()),
            reason: "an ALLOW rule matches and no DENY does".into(),
            egress: None,
            request: None,
            peer_mode: Some("strict (by shop/peers)".into()),
            enforced: vec!["connect() on a".into(), "sk_lookup of shop/near on a".into()],
            exits: vec!["connect_native".into(), "lookup_native".into()],
        };
        let refused = Path {
            share: 2.0 / 3.0,
            endpoint: "10.0.1.1:7000".into(),
            pod: Some("shop/far".into()),
            node: "b".into(),
            lane: "tunnel".into(),
            why: "captured on another node, b".into(),
            allowed: false,
            outcome: "denied".into(),
            reason: "port 7000 is not\none of [80]".into(),
            egress: None,
            peer_mode: None,
            enforced: vec!["the agent on b".into()],
            exits: vec![],
            ..path.clone()
        };
        Explanation {
            node: "a".into(),
            generation: 7,
            verdict: Verdict::Mixed,
            source: Source {
                pod: Some("shop/client".into()),
                ip: Some("10.0.0.1".into()),
                node: "a".into(),
                identity: Some("spiffe://cluster.local/ns/shop/sa/client".into()),
                state: "captured on a".into(),
            },
            destination: Destination {
                kind: "service".into(),
                name: "shop/web:80".into(),
                dialled: vec!["10.96.0.1:80".into()],
                state: "3 of 3 endpoints ready".into(),
            },
            exclusions: vec![],
            route: None,
            paths: vec![path, refused],
            kernel: KernelState { asked: 3, behind: vec![], elsewhere: vec!["sk_lookup of x is b's".into()] },
        }
    }

    #[test]
    fn the_walk_is_printed_in_the_connections_order() {
        let expected = "\
shop/client to 10.96.0.1:80, by generation 7 of a

source       shop/client at 10.0.0.1: captured on a
             proves spiffe://cluster.local/ns/shop/sa/client
destination  service shop/web:80: 3 of 3 endpoints ready
exclusions   none applies

endpoint     10.0.0.2:7000 shop/near on a (33 %)
  lane       native: both ends are captured pods of a
  peer mode  strict (by shop/peers)
  policy     allowed by shop/guard: an ALLOW rule matches and no DENY does
  enforced   connect() on a
             sk_lookup of shop/near on a
  counted    connect_native, lookup_native

endpoint     10.0.1.1:7000 shop/far on b (67 %)
  lane       tunnel: captured on another node, b
  policy     denied by shop/guard: port 7000 is not one of [80]
  enforced   the agent on b

kernel       the live maps say the same (3 asked)
             sk_lookup of x is b's
verdict      MIXED: some endpoints refuse it
";
        assert_eq!(render(&sample()), expected);
    }

    #[test]
    fn a_route_is_printed_with_its_rule_first() {
        let route = RouteReport { rule: Some("HTTPRoute shop/r rules[0]".into()), said: vec!["x".into()] };
        let mut sample = sample();
        sample.paths[0].request = Some("denied by shop/p: why".into());
        let text = render(&Explanation { route: Some(route), ..sample });
        assert!(text.contains("\n  request    denied by shop/p: why\n"), "{text}");
        assert!(text.contains("none applies\nroute        HTTPRoute shop/r rules[0]\n             x\n\n"), "{text}");
    }

    #[test]
    fn a_kernel_that_is_behind_is_shouted() {
        let behind = KernelState { asked: 1, behind: vec!["the maps say otherwise".into()], elsewhere: vec![] };
        let text = render(&Explanation { kernel: behind, ..sample() });
        assert!(text.contains("kernel       THE LIVE MAPS ARE BEHIND"), "{text}");
        assert!(text.contains("             the maps say otherwise\n"), "{text}");
        let text = render(&Explanation { kernel: KernelState::default(), ..sample() });
        assert!(text.contains("kernel       has no part in it\n"), "{text}");
    }
}
