//! Precedence is a total order, whatever the matches.

use std::cmp::Ordering;

use proptest::prelude::*;

use super::*;
use crate::model::route::{Candidate, HeaderMatch, Pattern, QueryMatch, TextMatch};
use crate::route::order::{Ranked, precedence, sorted};

fn path() -> impl Strategy<Value = PathMatch> {
    prop_oneof![
        "/[ab]{0,2}".prop_map(|path| PathMatch::Exact(path.into())),
        "/[ab]{0,2}/?".prop_map(|path| PathMatch::Prefix(path.into())),
        "/[ab]{0,2}".prop_map(|path| PathMatch::Regex(Pattern::new(&path).unwrap())),
        (proptest::option::of("[ab]{1,2}"), proptest::option::of("[ab]{1,2}")).prop_map(|(service, method)| {
            let text = |text: Option<String>| text.map(|text| TextMatch::Exact(text.into()));
            PathMatch::Grpc { service: text(service), method: text(method) }
        }),
    ]
}

fn ranked() -> impl Strategy<Value = Ranked> {
    let place = (0..2_usize, 0..2_usize, "[ab-]{1,2}", "[ab]", proptest::option::of(0..2_i64));
    (path(), any::<bool>(), 0..3_usize, 0..3_usize, place).prop_map(|(path, has_method, headers, query, place)| {
        let (index, at, namespace, name, created) = place;
        let value = || TextMatch::Exact("x".into());
        let header = |n: usize| HeaderMatch { name: format!("h{n}").parse().unwrap(), value: value() };
        let matching = Match {
            path,
            method: has_method.then_some(http::Method::GET),
            headers: (0..headers).map(header).collect(),
            query: (0..query).map(|n| QueryMatch { name: n.to_string().into(), value: value() }).collect(),
        };
        let candidate = Candidate { matching, rule: Arc::new(rule(&namespace, &name, index)) };
        Ranked { candidate, created, index: at }
    })
}

/// All that two matches of one rank and one place have in common.
fn place(ranked: &Ranked) -> (RuleId, usize, Option<i64>) {
    (ranked.candidate.rule.id.clone(), ranked.index, ranked.created)
}

proptest! {
    #[test]
    fn it_is_antisymmetric_transitive_and_total(a in ranked(), b in ranked(), c in ranked()) {
        prop_assert_eq!(precedence(&a, &b), precedence(&b, &a).reverse());
        if precedence(&a, &b).is_le() && precedence(&b, &c).is_le() {
            prop_assert!(precedence(&a, &c).is_le());
        }
        if precedence(&a, &b) == Ordering::Equal {
            prop_assert_eq!(place(&a), place(&b), "only a match itself is its equal");
        }
    }

    #[test]
    fn the_order_of_objects_does_not_matter(matches in proptest::collection::vec(ranked(), 0..6), turn in 0..6_usize) {
        let mut unique: Vec<Ranked> = Vec::new();
        for one in matches {
            if unique.iter().all(|other| precedence(other, &one) != Ordering::Equal) {
                unique.push(one);
            }
        }
        let mut turned = unique.clone();
        turned.rotate_left(turn.min(unique.len()));
        prop_assert_eq!(sorted(unique), sorted(turned));
    }
}
