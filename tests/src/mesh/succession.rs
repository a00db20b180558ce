//! One agent after another on the same node: a second one that starts beside the first, as with `maxSurge: 1`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::Mesh;
use crate::agent::{Agent, READY_WITHIN};
use crate::process::complaints;
use crate::programs;
use crate::topology::Side;

/// A predecessor that was succeeded ends within this: 5 s of quiet, 30 s of grace at the most, and a busy machine.
pub const ENDS_WITHIN: Duration = Duration::from_secs(60);

impl Mesh {
    /// Starts another agent of the same instance beside the one that runs, with some options instead of its own; it is
    /// not ready yet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn beside(&self, side: Side, name: &str, instead: &[(&str, &str)]) -> Result<Agent> {
        let same = self.agent(side)?.options().clone();
        let options = instead.iter().fold(same, |options, (option, value)| options.with(option, value));
        Agent::start_program(self.node(side), options, name, &programs::agent()?)
    }

    /// Waits until `successor` is ready and puts it into its node's place; gives the one that was succeeded.
    ///
    /// # Errors
    /// When it is not ready in time.
    pub fn succeed(&mut self, side: Side, mut successor: Agent) -> Result<Agent> {
        successor.ready(self.node(side), READY_WITHIN)?;
        self.replace_agent(side, successor).context("there was no agent")
    }

    /// Waits until an agent that was succeeded has ended by itself, without a complaint but those of
    /// [`Self::expect_complaint`] and those that are `expected`.
    ///
    /// # Errors
    /// When it runs on, ends with an error, or complains.
    pub fn ends_well(&self, predecessor: Agent, expected: &[&str]) -> Result<()> {
        let expected: Vec<String> =
            expected.iter().map(|part| (*part).to_owned()).chain(self.expected.iter().cloned()).collect();
        let said = predecessor.ends(ENDS_WITHIN)?;
        let complaints = complaints(&said, &expected);
        ensure!(complaints.is_empty(), "{complaints:?}");
        Ok(())
    }
}
