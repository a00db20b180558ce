//! `mesh-agent pods`: every pod of a node that its agent knows, in the mesh or not, and why.

use std::process::ExitCode;

use super::place::Place;
use super::table::{expiry, or_dash, table};
use super::{Output, fail, now, show};
use crate::admin::Request;
use crate::admin::pods::{PodLine, Pods};

/// Arguments of `pods`.
#[derive(Debug, clap::Args)]
pub struct PodsArgs {
    /// Only those of this namespace, or this one: NAMESPACE or NAMESPACE/POD
    which: Option<String>,
    #[command(flatten)]
    place: Place,
    /// How to print it
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

pub(super) fn run(args: &PodsArgs) -> ExitCode {
    match args.place.ask::<Pods>(&Request::Pods) {
        Ok(mut pods) => {
            if let Some(which) = &args.which {
                pods.pods.retain(|pod| is_meant(&pod.pod, which));
            }
            show(&pods, args.output, |pods| render(pods, now()))
        }
        Err(error) => fail(&error),
    }
}

fn is_meant(pod: &str, which: &str) -> bool {
    pod == which || pod.split_once('/').is_some_and(|(namespace, _)| namespace == which)
}

/// The pods as text; `now` in seconds since 1970.
fn render(pods: &Pods, now: i64) -> String {
    let mut text = String::new();
    let of = |stage: &str| pods.pods.iter().filter(|pod| pod.stage == stage).count();
    let title = format!(
        "PODS OF {} ({} known, {} opted in, {} captured)",
        pods.node,
        pods.pods.len(),
        pods.pods.iter().filter(|pod| pod.opted_in).count(),
        of("captured")
    );
    let head = ["POD", "OPTED IN", "STAGE", "MODE", "CERTIFICATE", "EXPIRES", "IDENTITY", "WHY"];
    table(&mut text, &title, &head, pods.pods.iter().map(|pod| row(pod, now)));
    text.trim_start().to_owned()
}

fn row(pod: &PodLine, now: i64) -> [String; 8] {
    // What it lacks goes first; that it is in the mesh needs no reason.
    let first = if pod.reason.is_empty() { &pod.opted_in_by } else { &pod.reason };
    let why: Vec<&str> = std::iter::once(first.as_str()).chain(pod.notes.iter().map(String::as_str)).collect();
    [
        pod.pod.clone(),
        if pod.opted_in { "yes" } else { "no" }.to_owned(),
        pod.stage.clone(),
        if pod.opted_in { pod.mode.clone() } else { "-".to_owned() },
        pod.certificate.clone(),
        expiry(pod.not_after, now),
        pod.identity.clone(),
        or_dash(&why.join("; ")),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, stage: &str, reason: &str) -> PodLine {
        PodLine {
            pod: name.into(),
            opted_in: stage != "-",
            opted_in_by: "because".into(),
            stage: stage.into(),
            reason: reason.into(),
            identity: "spiffe://x".into(),
            certificate: "-".into(),
            mode: "strict".into(),
            ..PodLine::default()
        }
    }

    #[test]
    fn each_pod_says_why_it_is_where_it_is() {
        let captured = PodLine {
            certificate: "valid".into(),
            not_after: 1300,
            notes: vec!["guarded, by shop/p".into()],
            ..pod("shop/web", "captured", "")
        };
        let all = vec![captured, pod("shop/old", "failed", "netns is gone"), pod("infra/dns", "-", "")];
        let text = render(&Pods { node: "a".into(), pods: all }, 1000);
        let expected = "\
PODS OF a (3 known, 2 opted in, 1 captured)
  POD        OPTED IN  STAGE     MODE    CERTIFICATE  EXPIRES   IDENTITY    WHY
  shop/web   yes       captured  strict  valid        in 5 min  spiffe://x  because; guarded, by shop/p
  shop/old   yes       failed    strict  -            -         spiffe://x  netns is gone
  infra/dns  no        -         -       -            -         spiffe://x  because
";
        assert_eq!(text, expected);
    }

    #[test]
    fn a_namespace_or_one_pod_can_be_meant() {
        let check = |which, expected| assert_eq!(is_meant("shop/web", which), expected, "{which}");
        check("shop", true);
        check("shop/web", true);
        check("sho", false);
        check("shop/we", false);
    }
}
