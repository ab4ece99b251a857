//! `deploy/kustomize`, as kubectl renders it: taken by the API of several versions, within the restricted profile, and
//! with what a cluster of nodes needs. How its pods behave is the scenario `kustomize` of `chaos-tests`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chaos_tests::cluster::binary;
use chaos_tests::kubernetes::{Kubernetes, Said};
use chaos_tests::pods::{FOLDER, Rendered};
use chaos_tests::{tools, wait};
use serde_json::{Value, json};

/// The versions of Kubernetes that are supported; between them no field that is used here comes or goes.
const VERSIONS: [&str; 3] = ["1.33", "1.35", "1.37"];

fn rendered() -> Result<Option<Rendered>> {
    tools::find(["kubectl"])?.map(|[kubectl]| Rendered::of(&kubectl, FOLDER)).transpose()
}

fn equal(found: &Value, wanted: &Value) -> Result<()> {
    ensure!(found == wanted, "found {found}, wanted {wanted}");
    Ok(())
}

/// That the value holds all of this, and perhaps more.
fn holds(found: &Value, wanted: Value) -> Result<()> {
    match &wanted {
        Value::Object(fields) => {
            fields.iter().try_for_each(|(key, wanted)| holds(&found[key], wanted.clone()).with_context(|| key.clone()))
        }
        _ => equal(found, &wanted),
    }
}

#[test]
fn every_supported_version_of_kubernetes_takes_the_manifests() -> Result<()> {
    let Some([python]) = tools::find(["python/bin/python3"])? else { return Ok(()) };
    let Some(rendered) = rendered()? else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let validate = |name: &str, text: &str, version: &str| -> Result<(bool, String)> {
        let file = folder.path().join(name);
        std::fs::write(&file, text)?;
        let arguments = ["-m", "kubernetes_validate", "--strict", "-k", version];
        let output = Command::new(&python).args(arguments).arg(&file).output()?;
        Ok((output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()))
    };
    for version in VERSIONS {
        let (passes, said) = validate("manifests.yaml", &rendered.text, version)?;
        let passed = said.matches("passed for resource").count();
        ensure!(passes && passed == rendered.documents.len(), "{version}: {said}");
        let misspelt = rendered.text.replacen("podManagementPolicy", "podManagmentPolicy", 1);
        let (passes, said) = validate("misspelt.yaml", &misspelt, version)?;
        ensure!(!passes, "{version} takes a field that does not exist: {said}");
    }
    Ok(())
}

/// Pod Security Standards, profile «restricted», and what goes beyond it: no token, no writable root.
#[test]
fn the_pods_keep_the_restricted_profile() -> Result<()> {
    let Some(rendered) = rendered()? else { return Ok(()) };
    let labels = &rendered.one("Namespace", "flotilla")?["metadata"]["labels"];
    equal(&labels["pod-security.kubernetes.io/enforce"], &json!("restricted"))?;
    let pod = &rendered.one("StatefulSet", "flotilla")?["spec"]["template"]["spec"];
    for forbidden in ["hostNetwork", "hostPID", "hostIPC", "initContainers", "hostUsers"] {
        equal(&pod[forbidden], &Value::Null).context(forbidden)?;
    }
    equal(&pod["automountServiceAccountToken"], &json!(false))?;
    equal(&rendered.one("ServiceAccount", "flotilla")?["automountServiceAccountToken"], &json!(false))?;
    let user = json!({ "runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532 });
    holds(&pod["securityContext"], user)?;
    equal(&pod["securityContext"]["seccompProfile"], &json!({ "type": "RuntimeDefault" }))?;
    let dockerfile = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/Dockerfile"))?;
    ensure!(dockerfile.contains("\nUSER 65532:65532\n"), "the image has another user");
    let container = &pod["containers"][0];
    ensure!(pod["containers"].as_array().is_some_and(|containers| containers.len() == 1));
    let wanted = json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"] },
    });
    equal(&container["securityContext"], &wanted)?;
    let ports = container["ports"].as_array().context("ports")?;
    ensure!(ports.iter().all(|port| port["hostPort"].is_null()), "{ports:?}");
    let join = json!([{ "name": "join", "secret": { "secretName": "flotilla-join", "defaultMode": 0o440 } }]);
    equal(&pod["volumes"], &join)
}

#[test]
fn the_manifests_give_a_cluster_of_nodes_what_it_needs() -> Result<()> {
    let Some(rendered) = rendered()? else { return Ok(()) };
    let set = &rendered.one("StatefulSet", "flotilla")?["spec"];
    holds(
        set,
        json!({
            "replicas": 3,
            "serviceName": "flotilla-peers",
            "podManagementPolicy": "Parallel",
            "updateStrategy": { "type": "RollingUpdate" },
            "persistentVolumeClaimRetentionPolicy": { "whenDeleted": "Retain", "whenScaled": "Retain" },
        }),
    )?;
    let own = &set["template"]["metadata"]["labels"];
    equal(&set["selector"]["matchLabels"], own)?;
    let peers = &rendered.one("Service", "flotilla-peers")?["spec"];
    holds(peers, json!({ "clusterIP": "None", "publishNotReadyAddresses": true, "selector": own }))?;
    let clients = &rendered.one("Service", "flotilla")?["spec"];
    holds(clients, json!({ "clusterIP": null, "publishNotReadyAddresses": null, "selector": own }))?;
    let budget = &rendered.one("PodDisruptionBudget", "flotilla")?["spec"];
    equal(budget, &json!({ "maxUnavailable": 1, "selector": { "matchLabels": own } }))?;
    let pod = &set["template"]["spec"];
    holds(pod, json!({ "terminationGracePeriodSeconds": 120, "serviceAccountName": "flotilla" }))?;
    for (probe, path) in [("startupProbe", "/startupz"), ("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        let get = &pod["containers"][0][probe]["httpGet"];
        equal(get, &json!({ "path": path, "port": "http" })).context(probe)?;
    }
    let spread = pod["topologySpreadConstraints"].as_array().context("topologySpreadConstraints")?;
    for key in ["kubernetes.io/hostname", "topology.kubernetes.io/zone"] {
        let constraint = spread.iter().find(|constraint| constraint["topologyKey"] == key).context(key)?;
        let soft = json!({ "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": { "matchLabels": own } });
        holds(constraint, soft).context(key)?;
    }
    let apart = &pod["affinity"]["podAntiAffinity"];
    ensure!(apart["requiredDuringSchedulingIgnoredDuringExecution"].is_null(), "{apart}");
    let term = &apart["preferredDuringSchedulingIgnoredDuringExecution"][0]["podAffinityTerm"];
    equal(&term["labelSelector"]["matchLabels"], own)?;
    let requests = &pod["containers"][0]["resources"]["requests"];
    ensure!(requests["cpu"].is_string() && requests["memory"].is_string(), "{requests}");
    let claim = &set["volumeClaimTemplates"][0];
    holds(claim, json!({ "metadata": { "name": "data" }, "spec": { "accessModes": ["ReadWriteOnce"] } }))
}

/// What `flotilla check-config` says in the pod's environment.
fn checked(environment: &[(&str, &str)], rendered: &Rendered) -> Result<(bool, String)> {
    let pod = rendered.pod(1)?;
    let mut command = Command::new(binary()?);
    command.arg("check-config").env_clear().envs(&pod.environment).envs(environment.iter().copied());
    let output = command.output()?;
    Ok((output.status.success(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()))
}

#[test]
fn the_program_takes_the_environment_of_the_pods() -> Result<()> {
    let Some(rendered) = rendered()? else { return Ok(()) };
    let pod = rendered.pod(1)?;
    equal(&json!(pod.arguments), &json!(["serve"]))?;
    equal(&json!(pod.mounts["data"]), &json!(pod.environment["FLOTILLA_DATA_DIR"]))?;
    // Names, never addresses, so that a pod that comes back is found.
    let peers: Vec<String> = (0..3).map(|ordinal| format!("flotilla-{ordinal}.flotilla-peers:7000")).collect();
    equal(&json!(pod.environment["FLOTILLA_PEERS"]), &json!(peers.join(",")))?;
    equal(&json!(pod.environment["FLOTILLA_PEER_ADVERTISE"]), &json!(peers[1]))?;
    let url = "http://flotilla-1.flotilla-peers.flotilla.svc:5000";
    equal(&json!(pod.environment["FLOTILLA_ADVERTISE_URL"]), &json!(url))?;
    let (good, said) = checked(&[], &rendered)?;
    ensure!(good && said.contains("shutdown_timeout = \"1m 30s\""), "{said}");
    // What links of Services would add, if somebody switched them on.
    let (good, said) =
        checked(&[("FLOTILLA_PORT", "tcp://10.0.0.1:5000"), ("FLOTILLA_PEERS_PORT_7000", "x")], &rendered)?;
    ensure!(good, "{said}");
    let (good, said) = checked(&[("FLOTILLA_NO_SETTING", "1")], &rendered)?;
    ensure!(!good, "{said}");
    Ok(())
}

/// The running requests, the hook before SIGTERM and the webhooks' last answers fit into the time of grace.
#[test]
fn the_time_of_grace_is_longer_than_all_that_happens_in_it() -> Result<()> {
    let Some(rendered) = rendered()? else { return Ok(()) };
    let pod = rendered.pod(0)?;
    let requests = pod.environment["FLOTILLA_SHUTDOWN_TIMEOUT"].strip_suffix('s').context("seconds")?.parse::<u64>()?;
    let [grace, hook] = pod.grace_seconds;
    ensure!(hook + requests + 15 <= grace, "{hook} + {requests} + 15 > {grace}");
    Ok(())
}

/// The Secret is mounted where the nodes look for it.
#[test]
fn the_pods_read_the_join_secret_from_its_volume() -> Result<()> {
    let Some(rendered) = rendered()? else { return Ok(()) };
    let pod = rendered.pod(0)?;
    let given = pod.environment.get("FLOTILLA_JOIN_SECRET_FILE");
    let place = format!("{}/secret", pod.mounts["join"]);
    ensure!(given == Some(&place), "{given:?} is not {place}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_api_server_takes_the_manifests_and_the_pods() -> Result<()> {
    let Some(programs) = tools::find(["etcd", "kube-apiserver", "kubectl"])? else { return Ok(()) };
    let rendered = Rendered::of(&programs[2], FOLDER)?;
    let kubernetes = Kubernetes::start(programs).await?;
    let namespace = PathBuf::from(FOLDER).join("namespace.yaml").display().to_string();
    done(&kubernetes.kubectl(&["apply", "-f", &namespace]).await?)?;
    let secret = ["create", "secret", "generic", "flotilla-join", "-n", "flotilla", "--from-literal=secret=0123abcd"];
    done(&kubernetes.kubectl(&secret).await?)?;
    let said = kubernetes.kubectl(&["apply", "--dry-run=server", "-k", FOLDER]).await?;
    done(&said)?;
    ensure!(!said.err.contains("Warning"), "{}", said.err);
    let said = kubernetes.kubectl(&["apply", "-k", FOLDER]).await?;
    done(&said)?;
    ensure!(said.out.lines().count() == rendered.documents.len(), "{}", said.out);
    // There is no controller here that makes the pods.
    let pod = |name: &str| {
        let template = &rendered.one("StatefulSet", "flotilla")?["spec"]["template"];
        let mut pod =
            json!({ "apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"], "spec": template["spec"] });
        pod["metadata"]["name"] = name.into();
        let claim = json!({ "name": "data", "persistentVolumeClaim": { "claimName": format!("data-{name}") } });
        pod["spec"]["volumes"].as_array_mut().context("volumes")?.push(claim);
        anyhow::Ok(pod)
    };
    let create = ["create", "-n", "flotilla", "-f", "-"];
    wait::until_ok(Duration::from_secs(30), "the pod is taken", async || {
        done(&kubernetes.kubectl_with(&create, &pod("flotilla-0")?.to_string()).await?)
    })
    .await?;
    let mut privileged = pod("flotilla-1")?;
    privileged["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = true.into();
    let refused = kubernetes.kubectl_with(&create, &privileged.to_string()).await?;
    ensure!(!refused.done && refused.err.contains("violates PodSecurity \"restricted"), "{refused:?}");
    Ok(())
}

fn done(said: &Said) -> Result<()> {
    ensure!(said.done, "{}", said.err);
    Ok(())
}
