//! A command of the agent's program, run to its end.

use std::process::Command;

use anyhow::{Context, Result};

/// What a command of the agent's program has said. Each has deadlines of its own.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: i32,
    /// Its result.
    pub out: String,
    /// Its complaints.
    pub err: String,
}

impl Said {
    /// Runs a command to its end.
    ///
    /// # Errors
    /// When it does not start, or is killed.
    pub fn by(mut command: Command) -> Result<Self> {
        let output = command.output().with_context(|| format!("{command:?} does not start"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().with_context(|| format!("{command:?} was killed"))?;
        Ok(Self { code, out: text(&output.stdout), err: text(&output.stderr) })
    }
}
