//! `flotilla check-config`: the settings in effect, and where each comes from.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Context as _;

use crate::admission::first_policies;
use crate::config::{Config, Flags, Loaded};

/// Check a configuration and print it as TOML, with the source of each value.
///
/// Takes the same options as `serve`. Exit status: 0 if it is good, 2 with the reason if not.
#[derive(Debug, clap::Args)]
pub(super) struct CheckConfig {
    #[command(flatten)]
    settings: Flags,
}

impl CheckConfig {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match super::load(&self.settings) {
            Ok(loaded) => {
                super::say(render(&loaded)?.trim_end());
                if let Some(path) = &loaded.config.admission.policies
                    && let Err(error) = first_policies::read(path)
                {
                    super::complain(format_args!("admission.policies: {error:#}"));
                    return Ok(ExitCode::from(super::EXIT_USAGE));
                }
            }
            Err(exit) => return Ok(exit),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The settings as a TOML file that gives the same configuration again.
fn render(loaded: &Loaded) -> anyhow::Result<String> {
    let values = toml::Table::try_from(&loaded.config).context("cannot write the configuration as TOML")?;
    let mut text = String::new();
    let mut section = "";
    let keys = Config::keys();
    for key in &keys {
        let (table, name) = key.rsplit_once('.').unwrap_or(("", key));
        if table != section {
            section = table;
            writeln!(text, "\n[{section}]")?;
        }
        let value =
            if table.is_empty() { values.get(name) } else { values.get(table).and_then(|table| table.get(name)) };
        match value {
            Some(value) => writeln!(text, "{name} = {value} # {}", loaded.origin(key))?,
            None => writeln!(text, "# {name} is not set")?,
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_a_file_that_gives_the_same_configuration() {
        let set = [
            ("FLOTILLA_PEERS", "a:7000,b:7000"),
            ("FLOTILLA_PEER_ADVERTISE", "a:7000"),
            ("FLOTILLA_UPLOAD_TTL", "90m"),
        ];
        let environment = set.map(|(name, value)| (name.into(), value.into()));
        let loaded = Loaded::load(&Flags::default(), environment).expect("good settings");
        let text = render(&loaded).expect("can be written");
        assert!(text.contains("upload_ttl = \"1h 30m\" # environment variable FLOTILLA_UPLOAD_TTL\n"), "{text}");
        assert!(text.contains("[admission]\n# listen is not set\n"), "{text}");
        assert!(text.contains("[raft]\nsnapshot_every = 20000 # default\n"), "{text}");

        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("flotilla.toml");
        std::fs::write(&file, text).expect("a file");
        let again = Loaded::load(&Flags::from_file(file), []).expect("good settings");
        assert_eq!(again.config, loaded.config);
    }
}
