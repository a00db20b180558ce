//! `mesh-agent config`: the snapshot that an agent decides by, as YAML or JSON.

use std::process::ExitCode;

use serde_json::Value;

use super::place::Place;
use super::{fail, print};
use crate::admin::Request;
use crate::explain::effective::{Part, Wanted};

/// Arguments of `config`.
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    /// One part of it
    #[arg(value_enum)]
    part: Option<PartName>,
    /// Only what is of this namespace, or has this name: NAMESPACE or NAMESPACE/NAME
    which: Option<String>,
    #[command(flatten)]
    place: Place,
    /// How to print it
    #[arg(long, value_enum, default_value = "yaml")]
    output: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Yaml,
    Json,
}

/// The parts, in the words of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum PartName {
    /// All of it
    All,
    /// Which namespaces are opted in
    Namespaces,
    /// Pods of all nodes
    Workloads,
    /// Service ports with their endpoints
    Services,
    /// What requests and connections to Service ports meet
    Routes,
    /// Authorization policies
    Policies,
    /// What pods that may not leave the mesh reach all the same
    Admitted,
    /// Mistakes that are not mended
    Problems,
}

impl PartName {
    fn part(self) -> Option<Part> {
        Some(match self {
            Self::All => return None,
            Self::Namespaces => Part::Namespaces,
            Self::Workloads => Part::Workloads,
            Self::Services => Part::Services,
            Self::Routes => Part::Routes,
            Self::Policies => Part::Policies,
            Self::Admitted => Part::Admitted,
            Self::Problems => Part::Problems,
        })
    }
}

pub(super) fn run(args: ConfigArgs) -> ExitCode {
    let wanted = wanted(args.part, args.which.as_deref());
    let document: Value = match args.place.ask(&Request::Config(wanted)) {
        Ok(document) => document,
        Err(error) => return fail(&error),
    };
    let text = match args.output {
        Format::Yaml => serde_norway::to_string(&document).map_err(|error| error.to_string()),
        Format::Json => serde_json::to_string_pretty(&document).map(|text| text + "\n").map_err(|e| e.to_string()),
    };
    match text {
        Ok(text) => {
            print(&text);
            ExitCode::SUCCESS
        }
        Err(error) => fail(&error),
    }
}

fn wanted(part: Option<PartName>, which: Option<&str>) -> Wanted {
    let (namespace, name) = match which.map(|which| which.split_once('/').ok_or(which)) {
        None => (None, None),
        Some(Err(namespace)) => (Some(namespace), None),
        Some(Ok((namespace, name))) => (Some(namespace), Some(name)),
    };
    Wanted {
        part: part.and_then(PartName::part),
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_a_part_of_a_namespace_or_of_one_object() {
        let check = |part, which, expected: (Option<Part>, Option<&str>, Option<&str>)| {
            let found = wanted(part, which);
            assert_eq!((found.part, found.namespace.as_deref(), found.name.as_deref()), expected);
        };
        check(None, None, (None, None, None));
        check(Some(PartName::All), Some("shop"), (None, Some("shop"), None));
        check(Some(PartName::Services), Some("shop/web"), (Some(Part::Services), Some("shop"), Some("web")));
    }
}
