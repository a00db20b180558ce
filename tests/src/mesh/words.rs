//! What is left to look at when a scenario has failed.

use std::fmt::Write as _;
use std::process::Command;

use super::Mesh;
use crate::process::tail;

impl Mesh {
    /// What a failed scenario leaves to look at: logs, kernel counters, and the pods' open connections.
    pub(super) fn last_words(&self) -> String {
        let mut words = String::new();
        for (side, agent) in self.agents.iter() {
            let Some(agent) = agent else { continue };
            let _ = writeln!(words, "-- {}\n{}", side.node_name(), tail(&agent.log(), 15));
            let _ = writeln!(words, "-- its access log\n{}", tail(&agent.process().stdout(), 5));
            let said = agent.process().stdout();
            let failed: String = said
                .lines()
                .filter(|line| !line.contains(r#""outcome":"ok""#))
                .map(|line| format!("{line}\n"))
                .collect();
            let _ = writeln!(words, "-- what failed in it\n{}", tail(&failed, 5));
            let metrics = agent.metrics(self.node(side)).unwrap_or_default();
            let exits = metrics.select("mesh_kernel_exits_total", &[]).filter(|sample| sample.value > 0.0);
            let exits: Vec<String> = exits.map(|s| format!("{:?} {}", s.labels.values(), s.value)).collect();
            let _ = writeln!(words, "-- its kernel counters\n{}", exits.join("\n"));
        }
        for pod in &self.pods {
            let sockets = Command::new("ss").args(["-tanoH", "-N", pod.netns().name()]).output();
            let sockets =
                sockets.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
            let open: Vec<&str> = sockets.lines().filter(|line| !line.starts_with("TIME-WAIT")).take(20).collect();
            let _ = writeln!(words, "-- sockets of {}\n{}", pod.object.display_name(), open.join("\n"));
        }
        words
    }
}
