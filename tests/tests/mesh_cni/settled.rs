//! Where a mesh has come to rest, and whether agents that start anew come to the same.

use anyhow::Context;

use super::*;

/// After the last change.
const SETTLED: Duration = Duration::from_secs(60);

/// What agents that start anew find of the book of their node.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Book {
    /// As it was left: pods in which nothing runs are found too.
    Kept,
    /// Gone: pods are found by what runs in them.
    Forgotten,
}

/// Where every pod stands, and what is published, of both nodes.
fn state(mesh: &Mesh) -> Result<Value> {
    let mut all = Vec::new();
    for side in Side::BOTH {
        let status = mesh.agent(side)?.status(mesh.node(side))?;
        let pods = status["pods"].as_array().context("no pods")?;
        let mut pods: Vec<Value> =
            pods.iter().map(|pod| json!([pod["pod"], pod["stage"], pod["mode"], pod["identity"]])).collect();
        pods.sort_by_key(ToString::to_string);
        let published = mesh.objects().published(side.node_name());
        let mut published: Vec<&str> = published.lines().filter(|line| line.contains("uid: ")).map(str::trim).collect();
        published.sort_unstable();
        // Whether an application has a pod left is the dice's doing.
        let problems = status["problems"].as_array().context("no problems")?;
        let problems: Vec<&Value> = problems.iter().filter(|one| !one.to_string().contains("selects no pod")).collect();
        all.push(json!({"pods": pods, "published": published, "problems": problems}));
    }
    Ok(json!(all))
}

/// Waits until nothing is on its way: the same state twice, and everything captured.
fn settled(mesh: &Mesh) -> Result<Value> {
    wait::until("everything is settled", SETTLED, || {
        let now = state(mesh)?;
        let on_the_way = ["joining", "leaving", "draining", "waiting", "failed"];
        let is_settled = !on_the_way.iter().any(|stage| now.to_string().contains(&format!("\"{stage}\"")));
        let published = now.as_array().into_iter().flatten().all(|side| {
            side["pods"].as_array().map(Vec::len) == side["published"].as_array().map(Vec::len)
                && side["problems"] == json!([])
        });
        wait::holds(is_settled && published, || now.to_string())?;
        Ok(now)
    })
}

/// Settles, kills both agents, starts them again and compares.
pub fn as_after_a_fresh_start(mesh: &mut Mesh, book: Book) -> Result<()> {
    let before = settled(mesh)?;
    for side in Side::BOTH {
        let agent = mesh.take_agent(side)?;
        let file = agent.state().join("pods.json");
        let options = agent.kill()?;
        if book == Book::Forgotten {
            std::fs::remove_file(file)?;
        }
        mesh.run_agent(side, options)?;
    }
    Side::BOTH.into_iter().try_for_each(|side| mesh.ready(side))?;
    let after = settled(mesh).with_context(|| format!("before: {before}"))?;
    ensure!(before == after, "{before}\nafter a fresh start: {after}");
    Ok(())
}
