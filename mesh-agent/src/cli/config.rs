//! `mesh-agent config`: the snapshot that an agent decides by, as YAML or JSON.

use std::process::ExitCode;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use serde_json::Value;

use super::place::Place;
use super::{fail, print};
use crate::admin::Request;
use crate::explain::effective::{Part, Wanted};

/// Arguments of `config`.
#[derive(Debug, clap::Args)]
pub struct ConfigArgs {
    /// One part of it
    #[arg(value_parser = Parts::parser())]
    part: Option<Parts>,
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

/// One part; none is all of them, so that a namespace can follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parts(Option<Part>);

impl Parts {
    fn parser() -> impl TypedValueParser<Value = Self> {
        let words = Part::ALL.map(|(_, word, about)| PossibleValue::new(word).help(about));
        let all = PossibleValue::new("all").help("All of it");
        PossibleValuesParser::new([vec![all], words.into()].concat())
            .map(|chosen| Self(Part::ALL.iter().find(|(_, word, _)| *word == chosen).map(|(part, _, _)| *part)))
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

fn wanted(part: Option<Parts>, which: Option<&str>) -> Wanted {
    let (namespace, name) = match which.map(|which| which.split_once('/').ok_or(which)) {
        None => (None, None),
        Some(Err(namespace)) => (Some(namespace), None),
        Some(Ok((namespace, name))) => (Some(namespace), Some(name)),
    };
    Wanted {
        part: part.and_then(|Parts(part)| part),
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn what_is_wanted_is_a_part_of_a_namespace_or_of_one_object() {
        let check = |part, which, expected: (Option<Part>, Option<&str>, Option<&str>)| {
            let found = wanted(part, which);
            assert_eq!((found.part, found.namespace.as_deref(), found.name.as_deref()), expected);
        };
        check(None, None, (None, None, None));
        check(Some(Parts(None)), Some("shop"), (None, Some("shop"), None));
        check(Some(Parts(Some(Part::Services))), Some("shop/web"), (Some(Part::Services), Some("shop"), Some("web")));
    }

    #[test]
    fn each_part_has_its_word_on_the_command_line() {
        #[derive(Debug, clap::Parser)]
        struct Line {
            #[command(flatten)]
            args: ConfigArgs,
        }
        let parse = |word: &str| Line::try_parse_from(["config", word]).map(|line| line.args.part);
        for (part, word, _) in Part::ALL {
            assert_eq!(parse(word).unwrap(), Some(Parts(Some(part))), "{word}");
            assert_eq!(serde_json::to_value(part).unwrap(), word, "on the wire too");
        }
        assert_eq!(parse("all").unwrap(), Some(Parts(None)));
        assert!(parse("secrets").is_err());
    }
}
