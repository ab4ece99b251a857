//! The webhooks under a real API server of Kubernetes: what `kubectl` shows, and what is stored.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::client::Method;
use chaos_tests::cluster::{Cluster, Options};
use chaos_tests::kubernetes::{Kubernetes, Said};
use chaos_tests::{tools, wait};
use serde_json::{Value, json};

use crate::fixture::{each, flotilla, push_small, want};

/// How long the API server may take to see another configuration.
const SEEN: Duration = Duration::from_secs(30);

const SETTINGS: &str =
    r#"{"registry_names": ["reg.example"], "workloads": {"argoproj.io/rollouts": "/spec/template"}}"#;

const POLICY: &str = "
name: production
mode: enforce
namespaces: ['prod-*']
default: deny
rules:
- name: ours
  images: ['reg.example/**']
  verb: approve
- name: here
  images: ['reg.example/**']
  verb: {require: {exists: true}}
";

const ROLLOUTS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: rollouts.argoproj.io}
spec:
  group: argoproj.io
  scope: Namespaced
  names: {plural: rollouts, singular: rollout, kind: Rollout}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
";

const OURS: &str = "reg.example/team/app:v1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_api_server_calls_the_webhooks_of_every_node() -> Result<()> {
    let Some(programs) = tools::find(["etcd", "kube-apiserver", "kubectl"])? else { return Ok(()) };
    let kubernetes = Kubernetes::start(programs).await?;
    let cluster = Cluster::start(Options { webhooks: true, ..Options::default() }).await?;
    let result = under_a_real_api_server(&kubernetes, &cluster).await;
    cluster.judged(result)
}

async fn under_a_real_api_server(kubernetes: &Kubernetes, cluster: &Cluster) -> Result<()> {
    let (image, _) = push_small(cluster, "team/app", "v1").await?;
    want(&each(cluster)[0], Method::PUT, "/api/v1/settings", &[], SETTINGS, &[204]).await?;
    want(&each(cluster)[1], Method::PUT, "/api/v1/policies/production", &[], POLICY, &[204]).await?;
    applied(kubernetes, ROLLOUTS).await?;
    done(kubernetes, &["create", "namespace", "flotilla"]).await?;
    // Through a Service it is the name of the Service that the certificate must have.
    let service = ["create", "service", "externalname", "flotilla", "--external-name=localhost", "-n", "flotilla"];
    done(kubernetes, &service).await?;
    for node in 0..3 {
        configure(kubernetes, cluster, node).await?;
        let namespace = format!("prod-{node}");
        let at = On { kubernetes, namespace: &namespace, digest: &image.digest };
        at.pods().await.with_context(|| format!("pods by node {node}"))?;
        at.workloads().await.with_context(|| format!("workloads by node {node}"))?;
        at.what_was_there_before().await.with_context(|| format!("what was there before, by node {node}"))?;
    }
    audited(kubernetes, &image.digest)?;
    without_any_node(kubernetes, cluster).await
}

/// Has the API server call one node: the first through a Service, the others by URL.
async fn configure(kubernetes: &Kubernetes, cluster: &Cluster, node: usize) -> Result<()> {
    let (files, ports) = cluster.webhooks()?;
    let (ca, port) = (files.authority.display().to_string(), ports[node].to_string());
    let (asked, url) = (&cluster.node(node).url, format!("https://127.0.0.1:{port}"));
    let place: &[&str] = if node == 0 { &["--port", &port] } else { &["--webhook-url", &url] };
    let arguments = [&["policy", "webhooks", "--ca", &ca, "--url", asked], place].concat();
    let (made, configurations) = flotilla(&arguments).await?;
    ensure!(made, "{configurations}");
    let namespace = format!("prod-{node}");
    done(kubernetes, &["create", "namespace", &namespace]).await?;
    // A pod that was there before anybody asked about it.
    done(kubernetes, &["delete", "validatingwebhookconfiguration,mutatingwebhookconfiguration", "--all"]).await?;
    wait::until_ok(SEEN, "nobody is asked", async || {
        done(kubernetes, &["run", "old", "--image=nginx", "-n", &namespace]).await
    })
    .await?;
    applied(kubernetes, &configurations).await?;
    let counted = async || cluster.metric(cluster.node(node), "flotilla_admission_requests_total").await;
    let before = counted().await?;
    wait::until_ok(SEEN, "the node is asked", async || {
        kubernetes.kubectl(&["run", "probe", "--image=nginx", "--dry-run=server", "-n", &namespace]).await?;
        let now = counted().await?;
        ensure!(now >= before + 2.0, "{now} calls, both webhooks should have been called");
        Ok(())
    })
    .await
}

/// One namespace, and what the tag means.
struct On<'a> {
    kubernetes: &'a Kubernetes,
    namespace: &'a str,
    digest: &'a str,
}

impl On<'_> {
    async fn kubectl(&self, arguments: &[&str]) -> Result<Said> {
        self.kubernetes.kubectl(&[arguments, &["-n", self.namespace]].concat()).await
    }

    async fn apply(&self, object: &Value) -> Result<Said> {
        self.kubernetes.kubectl_with(&["apply", "-n", self.namespace, "-f", "-"], &object.to_string()).await
    }

    async fn shown(&self, what: &str, path: &str) -> Result<String> {
        let said = self.kubectl(&["get", what, "-o", &format!("jsonpath={path}")]).await?;
        ensure!(said.done, "{}", said.err);
        Ok(said.out)
    }

    fn pinned(&self) -> String {
        format!("{OURS}@{}", self.digest)
    }

    async fn pods(&self) -> Result<()> {
        let denied = self.kubectl(&["run", "bad", "--image=nginx"]).await?;
        is_denied(&denied, &["production", "spec.containers[0]", "nginx"])?;
        let denied = self.kubectl(&["run", "absent", "--image=reg.example/team/app:v2"]).await?;
        is_denied(&denied, &["here", "push it first"])?;
        let denied = self.kubectl(&["run", "bad", "--image=nginx", "--dry-run=server"]).await?;
        is_denied(&denied, &["nginx"])?;

        let image = "{.spec.containers[0].image}";
        let run = ["run", "good", &format!("--image={OURS}")];
        let dry = self.kubectl(&[&run[..], &["--dry-run=server", "-o", &format!("jsonpath={image}")]].concat()).await?;
        ensure!(dry.done && dry.out == self.pinned(), "{dry:?}");
        ensure!(!self.kubectl(&["get", "pod", "good"]).await?.done, "a dry run stored it");
        let made = self.kubectl(&run).await?;
        ensure!(made.done && made.err.is_empty(), "{made:?}");
        ensure!(self.shown("pod/good", image).await? == self.pinned(), "not pinned");

        // Every field that carries an image, and all that is wrong in one answer.
        let everything = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"generateName": "all-"},
            "spec": {
                "containers": [{"name": "a", "image": OURS}, {"name": "b", "image": "quay.io/x/b"}],
                "initContainers": [{"name": "c", "image": "quay.io/x/c:1"}],
                "volumes": [{"name": "v", "image": {"reference": "quay.io/x/v:1"}}],
            },
        });
        let create = ["create", "-f", "-", "-n", self.namespace];
        let denied = self.kubernetes.kubectl_with(&create, &everything.to_string()).await?;
        is_denied(&denied, &["spec.containers[1]", "spec.initContainers[0]", "spec.volumes[0].image"])?;
        ensure!(!denied.err.contains("containers[0].image"), "{}", denied.err);

        is_done(&self.kubectl(&["label", "pod/good", "a=b"]).await?)?;
        let denied = self.kubectl(&["set", "image", "pod/good", "good=nginx"]).await?;
        is_denied(&denied, &["nginx"])?;
        // Who applies his own file again gets what is there.
        is_done(&self.kubectl(&["set", "image", "pod/good", &format!("good={OURS}")]).await?)?;
        ensure!(self.shown("pod/good", image).await? == self.pinned(), "not pinned again");

        let debug =
            |image: &str| ["debug", "pod/good", &format!("--image={image}"), "--attach=false"].map(String::from);
        let denied = self.kubectl(&debug("busybox").each_ref().map(String::as_str)).await?;
        is_denied(&denied, &["spec.ephemeralContainers[0]", "busybox"])?;
        is_done(&self.kubectl(&debug(OURS).each_ref().map(String::as_str)).await?)?;
        let ephemeral = self.shown("pod/good", "{.spec.ephemeralContainers[0].image}").await?;
        ensure!(ephemeral == self.pinned(), "{ephemeral}");

        let mirror = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "mirror", "annotations": {"kubernetes.io/config.mirror": "1"}},
            "spec": {"nodeName": "n", "containers": [{"name": "a", "image": OURS}]},
        });
        is_done(&self.apply(&mirror).await?)?;
        ensure!(self.shown("pod/mirror", image).await? == OURS, "a mirror pod was changed");
        is_done(&self.kubectl(&["delete", "pod/good", "--now"]).await?)
    }

    async fn workloads(&self) -> Result<()> {
        let labels = json!({"app": "w"});
        let template = |restart: &str| {
            json!({
                "metadata": {"labels": labels},
                "spec": {"restartPolicy": restart, "containers": [{"name": "a", "image": "nginx"}]},
            })
        };
        let selector = json!({"matchLabels": labels});
        let runs = |kind: &str, version: &str| {
            json!({
                "apiVersion": version, "kind": kind, "metadata": {"name": "w"},
                "spec": {"selector": selector, "template": template("Always")},
            })
        };
        let job = json!({"template": template("Never")});
        for (object, field) in [
            (runs("Deployment", "apps/v1"), "spec.template.spec.containers[0]"),
            (runs("ReplicaSet", "apps/v1"), "spec.template.spec.containers[0]"),
            (runs("StatefulSet", "apps/v1"), "spec.template.spec.containers[0]"),
            (runs("DaemonSet", "apps/v1"), "spec.template.spec.containers[0]"),
            (runs("Rollout", "argoproj.io/v1alpha1"), "spec.template.spec.containers[0]"),
            (
                json!({
                    "apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "w"},
                    "spec": {"selector": labels, "template": template("Always")},
                }),
                "spec.template.spec.containers[0]",
            ),
            (
                json!({"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "w"}, "template": template("Always")}),
                "template.spec.containers[0]",
            ),
            (
                json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "w"}, "spec": job}),
                "spec.template.spec.containers[0]",
            ),
            (
                json!({
                    "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "w"},
                    "spec": {"schedule": "0 0 * * *", "jobTemplate": {"spec": job}},
                }),
                "spec.jobTemplate.spec.template.spec.containers[0]",
            ),
        ] {
            let said = self.apply(&object).await?;
            ensure!(said.done, "{}: {}", object["kind"], said.err);
            let warned = said.err.contains("Warning: ") && said.err.contains(field);
            ensure!(warned, "{}: {}", object["kind"], said.err);
        }
        // An old image is in nobody's way, a new one is warned of.
        let scaled = self.kubectl(&["scale", "deployment/w", "--replicas=0"]).await?;
        ensure!(scaled.done && !scaled.err.contains("Warning"), "{scaled:?}");
        let changed = self.kubectl(&["set", "image", "deployment/w", "a=httpd"]).await?;
        ensure!(changed.done && changed.err.contains("Warning: "), "{changed:?}");
        Ok(())
    }

    async fn what_was_there_before(&self) -> Result<()> {
        is_done(&self.kubectl(&["label", "pod/old", "a=b"]).await?)?;
        is_done(&self.kubectl(&["delete", "pod/old", "--now"]).await?)?;
        for free in ["kube-system", "flotilla", "default"] {
            let said = self.kubernetes.kubectl(&["run", self.namespace, "--image=nginx", "-n", free]).await?;
            is_done(&said).with_context(|| format!("no policy is about {free}"))?;
        }
        Ok(())
    }
}

/// C42: nothing that the registry needs waits for the registry; and one command lets everything through.
async fn without_any_node(kubernetes: &Kubernetes, cluster: &Cluster) -> Result<()> {
    for node in cluster.nodes() {
        node.kill();
    }
    for free in ["kube-system", "flotilla"] {
        done(kubernetes, &["run", "alone", "--image=nginx", "-n", free]).await?;
    }
    let refused = kubernetes.kubectl(&["run", "alone", "--image=nginx", "-n", "default"]).await?;
    ensure!(!refused.done && refused.err.contains("failed calling webhook"), "{refused:?}");
    done(kubernetes, &["delete", "validatingwebhookconfiguration", "flotilla"]).await?;
    wait::until_ok(SEEN, "everything is let through", async || {
        done(kubernetes, &["run", "alone", "--image=nginx", "-n", "default"]).await
    })
    .await
}

/// The API server's own log has what the webhooks noted.
fn audited(kubernetes: &Kubernetes, digest: &str) -> Result<()> {
    let log = kubernetes.audit_log()?;
    let events: Vec<Value> = log.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let noted = |key: &str, text: &str| {
        events.iter().any(|event| event["annotations"][key].as_str().is_some_and(|note| note.contains(text)))
    };
    ensure!(noted("judge.flotilla.dev/policy", "production@"), "no policy in the audit log");
    ensure!(noted("pin.flotilla.dev/pinned", digest), "no digest in the audit log");
    ensure!(events.iter().any(|event| event["annotations"]["judge.flotilla.dev/revision"].is_string()));
    Ok(())
}

async fn done(kubernetes: &Kubernetes, arguments: &[&str]) -> Result<()> {
    is_done(&kubernetes.kubectl(arguments).await?).with_context(|| arguments.join(" "))
}

async fn applied(kubernetes: &Kubernetes, documents: &str) -> Result<()> {
    is_done(&kubernetes.kubectl_with(&["apply", "-f", "-"], documents).await?).with_context(|| documents.to_owned())
}

fn is_done(said: &Said) -> Result<()> {
    ensure!(said.done, "{}", said.err);
    Ok(())
}

fn is_denied(said: &Said, reasons: &[&str]) -> Result<()> {
    ensure!(!said.done && said.err.contains("admission webhook \"judge.flotilla.dev\" denied the request"), "{said:?}");
    let missing = reasons.iter().find(|reason| !said.err.contains(**reason));
    ensure!(missing.is_none(), "{missing:?} is missing: {}", said.err);
    Ok(())
}
