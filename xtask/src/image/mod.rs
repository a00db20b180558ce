//! `cargo xtask image`: the container image, as an OCI image layout and as one archive of it; without a daemon, without
//! root, and with the same digest for the same binary (decision 0014).

mod layout;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use mesh_tests::image::ARCHIVE;
use mesh_tests::{deployed, image};

use crate::{compile, setup, shell};

/// Where the binary is in the image; the image's entrypoint.
const BINARY: &str = "usr/local/bin/mesh-agent";

/// What was asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    debug: bool,
    /// Where the layout is written; beside the binary when not given.
    output: Option<PathBuf>,
    /// Only the root file system, into this folder.
    root: Option<PathBuf>,
}

/// Builds the binary and writes the image.
pub fn run(args: &[String]) -> Result<()> {
    let options = parse(args)?;
    setup::ebpf_toolchain()?;
    let binary = compile::static_agent(options.debug)?;
    if let Some(root) = &options.root {
        let target = root.join(BINARY);
        fs::create_dir_all(target.parent().context("the binary is in a folder")?)?;
        fs::copy(&binary, &target).with_context(|| format!("cannot write {}", target.display()))?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
        return Ok(());
    }
    let beside = binary.parent().context("the binary is in a folder")?.join(image::FOLDER);
    let folder = options.output.unwrap_or(beside);
    let digest = write(&binary, &folder)?;
    eprintln!("image: {} {digest}", deployed::image()?);
    eprintln!("image: {}, and as one file {}", folder.display(), folder.with_extension(ARCHIVE).display());
    Ok(())
}

/// Writes the image of this binary; gives the digest of its manifest.
fn write(binary: &Path, folder: &Path) -> Result<String> {
    let binary = fs::read(binary).with_context(|| format!("cannot read {}", binary.display()))?;
    let name = deployed::image()?;
    let digest = layout::write(folder, &layout::Image { name: &name, path: BINARY, binary: &binary })?;
    layout::archive(folder, &folder.with_extension(ARCHIVE))?;
    Ok(digest)
}

fn parse(args: &[String]) -> Result<Options> {
    let mut options = Options::default();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let mut folder = || args.next().map(PathBuf::from).with_context(|| format!("{arg} needs a folder"));
        match arg.as_str() {
            "--debug" => options.debug = true,
            "--output" => options.output = Some(folder()?),
            "--root" => options.root = Some(folder()?),
            other => bail!("`{other}` is no option (--debug, --output FOLDER, --root FOLDER)"),
        }
    }
    // Cargo and this task have different ideas of what a relative path is relative to.
    for path in [&mut options.output, &mut options.root].into_iter().flatten() {
        *path = std::path::absolute(&*path)?;
    }
    Ok(options)
}

/// Builds the image that the suites start, from a debug build, and gives its folder.
///
/// # Errors
/// When it cannot be built.
pub fn for_suites() -> Result<PathBuf> {
    let folder = shell::target_dir()?.join("debug").join(image::FOLDER);
    run(&["--debug".to_owned(), "--output".to_owned(), folder.display().to_string()])?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_binaries_give_equal_images_and_unequal_ones_do_not() {
        let folder = std::env::temp_dir().join(format!("mesh-image-test-{}", std::process::id()));
        let of = |name: &str, binary: &str| {
            let folder = folder.join(name);
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("binary"), binary).unwrap();
            let digest = write(&folder.join("binary"), &folder.join("image")).unwrap();
            (digest, fs::read(folder.join("image").with_extension(ARCHIVE)).unwrap())
        };
        let (first, second, other) = (of("a", "x"), of("b", "x"), of("c", "y"));
        let found = image::Image::open(&folder.join("a/image")).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(first, second);
        assert_ne!(first.0, other.0);
        assert_eq!(found.config.entrypoint, ["/usr/local/bin/mesh-agent"]);
    }

    #[test]
    fn options_are_read() {
        let options = parse(&["--debug", "--root", "/r"].map(str::to_owned)).unwrap();
        assert_eq!(options, Options { debug: true, output: None, root: Some("/r".into()) });
        assert!(parse(&["--root".to_owned()]).is_err() && parse(&["--rot".to_owned()]).is_err());
    }

    /// The last stage of the Dockerfile makes the same image.
    #[test]
    fn the_dockerfile_says_what_the_image_says() {
        let text = fs::read_to_string(shell::root().join("Dockerfile")).unwrap();
        let last = text.rsplit_once("FROM scratch").expect("its last stage is FROM scratch").1;
        let config = layout::config();
        for (key, value) in config["Labels"].as_object().unwrap() {
            assert!(last.contains(&format!("{key}={value}")), "no label {key}={value}");
        }
        let path = config["Env"][0].as_str().unwrap();
        for line in [
            format!("ENTRYPOINT {}", config["Entrypoint"]),
            format!("USER {}", config["User"].as_str().unwrap()),
            format!("ENV {path}"),
            "COPY --from=build /image/ /".to_owned(),
        ] {
            assert!(last.lines().any(|found| found == line), "no line `{line}` in{last}");
        }
        assert!(text.contains("cargo xtask image --root /image"), "the root file system is made by this task");
    }
}
