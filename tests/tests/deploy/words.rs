//! What `deploy/` tells the program is known to it, and what it tells one of them fits what it tells the others.

use clap::{Args, FromArgMatches, Subcommand};
use mesh_agent::cli;
use mesh_agent::config::RunArgs;

use super::*;

/// The container of one of the workloads.
fn container(kind: &str, name: &str) -> Result<Value> {
    Ok(deployed::object(kind, name)?["spec"]["template"]["spec"]["containers"][0].take())
}

fn containers() -> Result<[Value; 3]> {
    let deployment = |name| container("Deployment", name);
    Ok([container("DaemonSet", AGENT)?, deployment("mesh-agent-ca")?, deployment(CONTROLLER)?])
}

/// The program's own declaration of its arguments.
fn commands() -> clap::Command {
    let run = RunArgs::augment_args(clap::Command::new("run").args_override_self(true));
    cli::Command::augment_subcommands(clap::Command::new("mesh-agent")).subcommand(run)
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A container's arguments as the kubelet hands them over, in the namespace of `deploy/`.
fn arguments(container: &Value) -> Vec<String> {
    texts(&container["args"]).iter().map(|text| text.replace("$(POD_NAMESPACE)", NAMESPACE)).collect()
}

/// The value of an option, if it is given.
fn option<'a>(arguments: &'a [String], name: &str) -> Vec<&'a str> {
    arguments.iter().filter_map(|text| text.strip_prefix(name)?.strip_prefix('=')).collect()
}

#[test]
fn the_program_knows_every_argument_and_every_variable() -> Result<()> {
    for container in containers()? {
        let mut arguments = arguments(&container);
        let subcommand = arguments.first().cloned().context("a subcommand")?;
        let command = commands();
        let known = command.find_subcommand(&subcommand).with_context(|| format!("{subcommand}: no such command"))?;
        for variable in container["env"].as_array().into_iter().flatten() {
            let name = variable["name"].as_str().context("a name")?;
            let reads = known.get_arguments().find(|known| known.get_env().is_some_and(|env| env == name));
            let (value, Some(reads)) = (variable["value"].as_str().unwrap_or("from-the-api"), reads) else {
                let used = container["args"].to_string().contains(&format!("$({name})"));
                ensure!(used, "{subcommand}: nobody reads the variable {name}");
                continue;
            };
            // As an argument its value is looked at too.
            let long = reads.get_long().context("a long name")?;
            arguments.push(match reads.get_action().takes_values() {
                true => format!("--{long}={value}"),
                false => format!("--{long}"),
            });
        }
        let matches = commands().try_get_matches_from(["mesh-agent".to_owned()].into_iter().chain(arguments))?;
        if let Some(("run", matches)) = matches.subcommand() {
            RunArgs::from_arg_matches(matches)?.check()?;
        }
    }
    Ok(())
}

#[test]
fn who_may_ask_for_certificates_is_whom_the_agents_run_as() -> Result<()> {
    let [_, ca, _] = containers()?;
    let pod = deployed::object("DaemonSet", AGENT)?["spec"]["template"]["spec"].take();
    let account = format!("{NAMESPACE}/{}", pod["serviceAccountName"].as_str().context("an account")?);
    let ca = arguments(&ca);
    let default = |name: &str| -> Result<String> {
        let command = commands();
        let ca = command.find_subcommand("ca").context("ca")?;
        let option = ca.get_arguments().find(|known| known.get_long() == Some(name)).context("the option")?;
        Ok(option.get_default_values()[0].to_string_lossy().into_owned())
    };
    ensure!(option(&ca, "--agent-account") == [account.as_str()], "{ca:?} and {account}");
    ensure!(default("agent-account")? == account, "by default somebody else may ask");
    let volumes = pod["volumes"].as_array().context("volumes")?.iter();
    let tokens: Vec<&Value> = volumes
        .map(|volume| &volume["projected"]["sources"][0]["serviceAccountToken"])
        .filter(|t| !t.is_null())
        .collect();
    ensure!(tokens.len() == 1 && tokens[0]["audience"] == default("token-audience")?.as_str(), "{tokens:?}");
    Ok(())
}

#[test]
fn agents_dial_their_authority_by_a_name_that_it_has_and_trust_what_it_publishes() -> Result<()> {
    let [agent, ca, _] = containers()?;
    let (agent_says, ca_says) = (arguments(&agent), arguments(&ca));
    let target = option(&agent_says, "--ca")[0].strip_prefix("grpc://").context("grpc")?;
    let (name, port) = target.split_once(':').context("NAME:PORT")?;
    ensure!(option(&ca_says, "--name").contains(&name), "{name} is not in {ca_says:?}");
    let service = deployed::object("Service", "mesh-agent-ca")?;
    ensure!(name == format!("{}.{NAMESPACE}.svc", service["metadata"]["name"].as_str().unwrap_or_default()), "{name}");
    ensure!(service["spec"]["ports"][0]["port"] == port.parse::<u16>()?, "{service}");
    ensure!(option(&ca_says, "--listen")[0].ends_with(&format!(":{port}")), "{ca_says:?}");

    let published = option(&ca_says, "--publish-roots")[0];
    let daemon_set = deployed::object("DaemonSet", AGENT)?["spec"]["template"]["spec"].take();
    let text = daemon_set.to_string();
    let map = published.strip_prefix(&format!("{NAMESPACE}/")).context("in the same namespace")?;
    ensure!(text.contains(&format!(r#""configMap":{{"name":"{map}""#)), "{map} is not mounted");
    let made = option(&ca_says, "--create-root-secret")[0];
    let mounted = deployed::object("Deployment", "mesh-agent-ca")?["spec"]["template"]["spec"]["volumes"][0].take();
    ensure!(mounted["secret"]["secretName"] == made.rsplit('/').next().unwrap_or_default(), "{mounted}");
    for (container, option_name, file) in [(&agent, "--ca-root", "root-cert.pem"), (&agent, "--ca-token-file", "token")]
    {
        let path = option(&agent_says, option_name)[0];
        let mounts = container["volumeMounts"].as_array().context("mounts")?.iter();
        let mounts: Vec<&str> = mounts.filter_map(|mount| mount["mountPath"].as_str()).collect();
        let folder = path.strip_suffix(&format!("/{file}")).with_context(|| format!("{option_name}={path}"))?;
        ensure!(mounts.contains(&folder), "{option_name}={path}: nothing is mounted there");
    }
    Ok(())
}
