//! `schemas/` describes what `-o json` prints. The test compares it with the types;
//! `ISTHMUS_BLESS=1 cargo test -p agentctl schemas` writes it anew.
#![expect(clippy::unwrap_used, reason = "a test's panic is its report")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use schemars::generate::SchemaSettings;
use serde_json::{Value, json};

use crate::output::{API_VERSION, Document, Report};
use crate::report::certs::ClusterCertificates;
use crate::report::lb::LoadBalancerMaps;
use crate::report::link::ClusterLink;
use crate::report::mesh::ClusterMeshStatus;
use crate::report::monitor::MonitorEvent;
use crate::report::service::ServiceList;
use crate::report::status::NodeStatus;
use crate::report::version::Version;

fn schema<R: Report + 'static>() -> (String, String) {
    // What is written, not what could be read: no field is ever left out.
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut schema: Value = settings
        .into_generator()
        .into_root_schema_for::<Document<'static, R>>()
        .into();
    schema["title"] = json!(R::KIND);
    schema["properties"]["kind"] = json!({"const": R::KIND});
    schema["properties"]["apiVersion"] = json!({"const": API_VERSION});
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    (format!("{}.json", R::KIND), text)
}

#[test]
fn schemas_are_those_of_the_types() {
    let wanted: BTreeMap<String, String> = [
        schema::<ClusterCertificates>(),
        schema::<ClusterLink>(),
        schema::<ClusterMeshStatus>(),
        schema::<LoadBalancerMaps>(),
        schema::<MonitorEvent>(),
        schema::<NodeStatus>(),
        schema::<ServiceList>(),
        schema::<Version>(),
    ]
    .into();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    if std::env::var_os("ISTHMUS_BLESS").is_some() {
        fs::create_dir_all(&directory).unwrap();
        for (name, text) in &wanted {
            fs::write(directory.join(name), text).unwrap();
        }
    }
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(&directory).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        found.insert(name, fs::read_to_string(entry.path()).unwrap());
    }
    let names = |files: &BTreeMap<String, String>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found), names(&wanted));
    for (name, text) in &wanted {
        let same = found.get(name) == Some(text);
        assert!(
            same,
            "schemas/{name} is stale: ISTHMUS_BLESS=1 cargo test -p agentctl schemas writes it anew"
        );
    }
}
