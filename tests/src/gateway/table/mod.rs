//! The tests: those of the mesh suite, each with its cases ([`suite`]), and rules of the specification that no test of
//! it covers, ours ([`all`]).

mod filters;
mod redirects;
mod routing;
mod rules;
mod traffic;

use super::case::{Case, get};
use super::world::World;

/// How a report of the suite counts a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Counted among the core of its profile.
    Core,
    /// Counted among the extended features of its profile.
    Extended,
    /// Run where its features are claimed, and counted nowhere.
    Provisional,
    /// Not in the suite: a rule of the specification.
    Rule,
}

impl Class {
    /// In reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Extended => "extended",
            Self::Provisional => "provisional",
            Self::Rule => "rule",
        }
    }
}

/// What is applied before a test's cases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manifest {
    /// Nothing.
    None,
    /// The file of this stem, of each source that has it.
    Suite(&'static str),
    /// The file of this stem, which only we have.
    Own(&'static str),
}

/// A manifest and what must then hold.
#[derive(Clone, Debug)]
pub struct Test {
    /// Its name; the suite's own where it has one.
    pub name: &'static str,
    /// How it counts.
    pub class: Class,
    /// What is applied.
    pub manifest: Manifest,
    /// Requests, in order.
    pub cases: Vec<Case>,
    /// Parts of warnings that an agent rightly gives meanwhile.
    pub complaints: Vec<&'static str>,
    /// What must hold besides, with its name: looked at after the cases, before the manifest is deleted.
    pub afterwards: Option<(&'static str, Afterwards)>,
}

/// A look at the world.
pub type Afterwards = fn(&World<'_>) -> anyhow::Result<()>;

impl Test {
    fn new(name: &'static str, class: Class, stem: &'static str, cases: Vec<Case>) -> Self {
        Self { name, class, manifest: Manifest::Suite(stem), cases, complaints: Vec::new(), afterwards: None }
    }

    fn complaint(mut self, part: &'static str) -> Self {
        self.complaints.push(part);
        self
    }
}

/// Everything: the suite, and rules of the specification that it does not cover.
#[must_use]
pub fn all() -> Vec<Test> {
    suite().into_iter().chain(rules::tests()).collect()
}

/// The mesh suite: v1.6.1, and one test that came after it.
#[must_use]
pub fn suite() -> Vec<Test> {
    let basic = Test {
        name: "MeshBasic",
        class: Class::Core,
        manifest: Manifest::None,
        cases: vec![get("/")],
        complaints: Vec::new(),
        afterwards: None,
    };
    std::iter::once(basic).chain(routing::tests()).chain(filters::tests()).chain(redirects::tests()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suite_is_whole() {
        let suite = suite();
        let count = |class: Class| suite.iter().filter(|test| test.class == class).count();
        assert_eq!((suite.len(), suite.iter().map(|test| test.cases.len()).sum::<usize>()), (23, 85));
        assert_eq!((count(Class::Core), count(Class::Extended), count(Class::Provisional)), (9, 7, 7));
    }
}
