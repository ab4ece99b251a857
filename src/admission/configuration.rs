//! The webhook configurations that make the API server of a Kubernetes cluster call the webhooks.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhook, MutatingWebhookConfiguration, RuleWithOperations, ServiceReference, ValidatingWebhook,
    ValidatingWebhookConfiguration, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, ObjectMeta};

use super::review::{POD_RESOURCES, TEMPLATES};

/// What both configurations are called.
const NAME: &str = "flotilla";

/// How long the API server waits, in seconds: what stands in the way of every pod must not do so for long.
const TIMEOUT_SECONDS: i32 = 5;

/// Where the API server finds the webhooks.
pub(crate) struct Target {
    /// The namespace of the registry, which is left out: it must start when there is no registry.
    pub(crate) namespace: String,
    pub(crate) service: String,
    pub(crate) port: u16,
    /// Takes the place of the Service.
    pub(crate) url: Option<String>,
    /// The authority that signed the nodes' certificates, as PEM.
    pub(crate) authority: Vec<u8>,
}

/// The configurations for the kinds that are known and for further ones, each as `GROUP/RESOURCE`.
pub(crate) fn configurations<'a>(
    target: &Target,
    workloads: impl Iterator<Item = &'a str>,
) -> (MutatingWebhookConfiguration, ValidatingWebhookConfiguration) {
    let rules = rules(workloads);
    let metadata = || ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
    let mutate = MutatingWebhook {
        name: "pin.flotilla.dev".into(),
        admission_review_versions: vec!["v1".into()],
        side_effects: "None".into(),
        // What is not pinned is still judged.
        failure_policy: Some("Ignore".into()),
        match_policy: Some("Equivalent".into()),
        reinvocation_policy: Some("IfNeeded".into()),
        timeout_seconds: Some(TIMEOUT_SECONDS),
        client_config: target.client_config("/admission/mutate"),
        namespace_selector: Some(target.namespaces()),
        rules: Some(rules.clone()),
        ..MutatingWebhook::default()
    };
    let validate = ValidatingWebhook {
        name: "judge.flotilla.dev".into(),
        admission_review_versions: vec!["v1".into()],
        side_effects: "None".into(),
        failure_policy: Some("Fail".into()),
        match_policy: Some("Equivalent".into()),
        timeout_seconds: Some(TIMEOUT_SECONDS),
        client_config: target.client_config("/admission/validate"),
        namespace_selector: Some(target.namespaces()),
        rules: Some(rules),
        ..ValidatingWebhook::default()
    };
    (
        MutatingWebhookConfiguration { metadata: metadata(), webhooks: Some(vec![mutate]) },
        ValidatingWebhookConfiguration { metadata: metadata(), webhooks: Some(vec![validate]) },
    )
}

impl Target {
    fn client_config(&self, path: &str) -> WebhookClientConfig {
        let service = ServiceReference {
            namespace: self.namespace.clone(),
            name: self.service.clone(),
            path: Some(path.to_owned()),
            port: Some(self.port.into()),
        };
        WebhookClientConfig {
            ca_bundle: Some(ByteString(self.authority.clone())),
            url: self.url.as_ref().map(|url| format!("{}{path}", url.trim_end_matches('/'))),
            service: self.url.is_none().then_some(service),
        }
    }

    fn namespaces(&self) -> LabelSelector {
        let others = LabelSelectorRequirement {
            key: "kubernetes.io/metadata.name".into(),
            operator: "NotIn".into(),
            values: Some(vec![self.namespace.clone(), "kube-system".into()]),
        };
        LabelSelector { match_expressions: Some(vec![others]), match_labels: None }
    }
}

/// One rule for each group of resources.
fn rules<'a>(workloads: impl Iterator<Item = &'a str>) -> Vec<RuleWithOperations> {
    let mut groups: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for resource in POD_RESOURCES {
        groups.entry("").or_default().push(resource.into());
    }
    for (group, resource, _) in TEMPLATES {
        groups.entry(group).or_default().push(resource.into());
    }
    for (group, resource) in workloads.filter_map(|workload| workload.split_once('/')) {
        groups.entry(group).or_default().push(resource.into());
    }
    let is_known = |group: &str| group.is_empty() || TEMPLATES.iter().any(|(known, ..)| *known == group);
    let rule = |(group, resources): (&str, Vec<String>)| RuleWithOperations {
        operations: Some(vec!["CREATE".into(), "UPDATE".into()]),
        // Kubernetes converts its own kinds to this version; further kinds may have any.
        api_versions: Some(vec![if is_known(group) { "v1" } else { "*" }.into()]),
        api_groups: Some(vec![group.into()]),
        resources: Some(resources),
        scope: Some("Namespaced".into()),
    };
    groups.into_iter().map(rule).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn target() -> Target {
        let (namespace, service) = ("flotilla".to_owned(), "flotilla".to_owned());
        Target { namespace, service, port: 8443, url: None, authority: Vec::new() }
    }

    fn written(workloads: &[&str]) -> [Value; 2] {
        let (mutating, validating) = configurations(&target(), workloads.iter().copied());
        [serde_json::to_value(mutating), serde_json::to_value(validating)].map(|written| written.expect("JSON"))
    }

    #[test]
    fn the_file_in_deploy_is_what_is_made() {
        let text = std::fs::read_to_string("deploy/admission/webhooks.yaml").expect("a file");
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
        assert_eq!(documents, written(&[]));
    }

    /// C42: the registry must come up when there is no registry.
    #[test]
    fn c42_what_the_registry_needs_is_left_out_by_the_configuration_itself() {
        for (configuration, policy) in written(&["argoproj.io/rollouts"]).iter().zip(["Ignore", "Fail"]) {
            let webhook = &configuration["webhooks"][0];
            assert_eq!(webhook["failurePolicy"], policy);
            assert!(webhook["timeoutSeconds"].as_i64().is_some_and(|seconds| seconds <= 5));
            let selector = &webhook["namespaceSelector"]["matchExpressions"][0];
            assert_eq!(selector["key"], "kubernetes.io/metadata.name");
            assert_eq!(selector["operator"], "NotIn");
            assert_eq!(selector["values"], serde_json::json!(["flotilla", "kube-system"]));
        }
        // The one command to get out is where people look for it.
        let documented = std::fs::read_to_string("docs/admission.md").expect("a file");
        assert!(documented.contains("kubectl delete validatingwebhookconfiguration"));
    }

    #[test]
    fn further_kinds_are_sent_too() {
        let [mutating, _] = written(&["argoproj.io/rollouts", "apps/others"]);
        let rules = mutating["webhooks"][0]["rules"].as_array().expect("rules").clone();
        let of = |group: &str| rules.iter().find(|rule| rule["apiGroups"][0] == group).cloned().expect("a group");
        assert_eq!(of("argoproj.io")["resources"], serde_json::json!(["rollouts"]));
        assert_eq!(of("argoproj.io")["apiVersions"], serde_json::json!(["*"]));
        assert!(of("apps")["resources"].as_array().is_some_and(|all| all.iter().any(|one| one == "others")));
        assert!(
            of("")["resources"].as_array().is_some_and(|all| all.iter().any(|one| one == "pods/ephemeralcontainers"))
        );
    }
}
