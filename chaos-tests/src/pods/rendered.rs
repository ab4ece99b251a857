//! What `kubectl kustomize` renders, and what a kubelet would make of its StatefulSet.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

/// The folder of the manifests.
pub const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kustomize");
const DOCKERFILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/Dockerfile");

/// The rendered objects.
#[derive(Debug)]
pub struct Rendered {
    /// As kubectl printed them.
    pub text: String,
    /// One by one.
    pub documents: Vec<Value>,
}

/// One pod of the StatefulSet, as its kubelet sees it.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its name, which is its hostname too.
    pub name: String,
    /// The names under which others find it.
    pub host_names: Vec<String>,
    /// Its container's environment.
    pub environment: BTreeMap<String, String>,
    /// What follows the image's entrypoint.
    pub arguments: Vec<String>,
    /// The user and group of the process, and the group of its volumes.
    pub ids: [u64; 3],
    /// Where each of its volumes is mounted.
    pub mounts: BTreeMap<String, String>,
    /// The container, as rendered.
    pub container: Value,
    /// How many seconds it has after SIGTERM, and how many before.
    pub grace_seconds: [u64; 2],
}

impl Rendered {
    /// Renders the folder.
    ///
    /// # Errors
    /// What kubectl says.
    pub fn of(kubectl: &Path, folder: &str) -> anyhow::Result<Self> {
        let output = Command::new(kubectl).args(["kustomize", folder]).output().context("kubectl")?;
        ensure!(output.status.success(), "kubectl kustomize: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout)?;
        let documents = serde_saphyr::from_multiple(&text)?;
        Ok(Self { text, documents })
    }

    /// The object of that kind whose name is this, or begins with it and ends with the hash of its content.
    ///
    /// # Errors
    /// There is none.
    pub fn one(&self, kind: &str, name: &str) -> anyhow::Result<&Value> {
        let wanted = |document: &&Value| {
            let found = document["metadata"]["name"].as_str().unwrap_or_default();
            let rest = found.strip_prefix(name);
            document["kind"] == kind && rest.is_some_and(|rest| rest.is_empty() || kind == "ConfigMap")
        };
        self.documents.iter().find(wanted).with_context(|| format!("no {kind} {name}"))
    }

    /// The pod of that number.
    ///
    /// # Errors
    /// Something is missing, or is of a form that is not understood here.
    pub fn pod(&self, ordinal: usize) -> anyhow::Result<Pod> {
        let set = self.one("StatefulSet", "flotilla")?;
        let spec = &set["spec"]["template"]["spec"];
        let container = spec["containers"][0].clone();
        let name = format!("{}-{ordinal}", text(&set["metadata"]["name"])?);
        let namespace = text(&set["metadata"]["namespace"])?;
        let short = format!("{name}.{}", text(&set["spec"]["serviceName"])?);
        let host_names =
            ["", &format!(".{namespace}"), &format!(".{namespace}.svc")].map(|end| format!("{short}{end}"));
        let mut environment = image_environment()?;
        self.fill(&container, &name, namespace, &mut environment)?;
        let arguments = list(&container["args"]).map(|argument| Ok(expanded(text(argument)?, &environment)));
        let security = &spec["securityContext"];
        let number = |value: &Value| value.as_u64().with_context(|| format!("{value} is no number"));
        let mount = |mount: &Value| Ok((text(&mount["name"])?.to_owned(), text(&mount["mountPath"])?.to_owned()));
        Ok(Pod {
            host_names: host_names.to_vec(),
            arguments: arguments.collect::<anyhow::Result<_>>()?,
            ids: [number(&security["runAsUser"])?, number(&security["runAsGroup"])?, number(&security["fsGroup"])?],
            mounts: list(&container["volumeMounts"]).map(mount).collect::<anyhow::Result<_>>()?,
            grace_seconds: [
                number(&spec["terminationGracePeriodSeconds"])?,
                number(&container["lifecycle"]["preStop"]["sleep"]["seconds"])?,
            ],
            name,
            environment,
            container,
        })
    }

    /// As a kubelet does: the ConfigMaps first, then one variable after the other, each of which may use those before.
    fn fill(
        &self,
        container: &Value,
        name: &str,
        namespace: &str,
        environment: &mut BTreeMap<String, String>,
    ) -> anyhow::Result<()> {
        for source in list(&container["envFrom"]) {
            let map = self.one("ConfigMap", text(&source["configMapRef"]["name"])?)?;
            for (key, value) in map["data"].as_object().context("a ConfigMap without data")? {
                environment.insert(key.clone(), text(value)?.to_owned());
            }
        }
        for variable in list(&container["env"]) {
            let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                Some("metadata.name") => name.to_owned(),
                Some("metadata.namespace") => namespace.to_owned(),
                Some(other) => anyhow::bail!("fieldPath {other} is not understood here"),
                None => expanded(text(&variable["value"])?, environment),
            };
            environment.insert(text(&variable["name"])?.to_owned(), value);
        }
        Ok(())
    }
}

impl Pod {
    /// The number of the port of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn port(&self, name: &str) -> anyhow::Result<u64> {
        let port = list(&self.container["ports"]).find(|port| port["name"] == name);
        port.and_then(|port| port["containerPort"].as_u64()).with_context(|| format!("no port {name}"))
    }

    /// Where clients of the cluster's network reach it.
    ///
    /// # Errors
    /// It has no port `http`.
    pub fn url(&self) -> anyhow::Result<String> {
        Ok(format!("http://{}:{}", self.host_names[0], self.port("http")?))
    }

    /// The path that a probe asks (`startupProbe`, `livenessProbe`, `readinessProbe`).
    ///
    /// # Errors
    /// There is no such probe of the port `http`.
    pub fn probe(&self, probe: &str) -> anyhow::Result<&str> {
        let get = &self.container[probe]["httpGet"];
        ensure!(get["port"] == "http", "{probe}: {get}");
        text(&get["path"])
    }
}

/// What the image sets by itself.
fn image_environment() -> anyhow::Result<BTreeMap<String, String>> {
    let dockerfile = fs::read_to_string(DOCKERFILE).context(DOCKERFILE)?;
    let settings = dockerfile.lines().filter_map(|line| line.strip_prefix("ENV ")?.split_once('='));
    Ok(settings.map(|(key, value)| (key.to_owned(), value.to_owned())).collect())
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> anyhow::Result<&str> {
    value.as_str().with_context(|| format!("{value} is no text"))
}

/// `$(NAME)` becomes the variable's value where there is one; `$$` stands for `$`.
fn expanded(template: &str, environment: &BTreeMap<String, String>) -> String {
    let mut result = String::new();
    let mut rest = template;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        rest = &rest[at..];
        let reference = rest.strip_prefix("$(").and_then(|after| after.split_once(')'));
        let known = reference.and_then(|(name, after)| Some((environment.get(name)?, after)));
        match known {
            Some((value, after)) => {
                result.push_str(value);
                rest = after;
            }
            None => {
                result.push('$');
                rest = rest.strip_prefix("$$").unwrap_or(&rest[1..]);
            }
        }
    }
    result + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in_as_a_kubelet_does() {
        let environment = BTreeMap::from([("A".to_owned(), "one".to_owned()), ("B".to_owned(), "$(A)".to_owned())]);
        let cases =
            [("$(A).b:$(B)", "one.b:$(A)"), ("$(C) $", "$(C) $"), ("$$(A) $A", "$(A) $A"), ("$(A", "$(A"), ("", "")];
        for (template, wanted) in cases {
            assert_eq!(expanded(template, &environment), wanted, "{template}");
        }
    }
}
