//! Scenarios on labs: real processes, the real kernel, one lab at a time (`--test-threads=1` keeps their output apart).

#[path = "lab"]
mod lab {
    mod affinity;
    mod books;
    mod churn;
    mod coexist;
    mod common;
    mod dead;
    mod declared;
    mod dump;
    mod full;
    mod hostile;
    mod hosts;
    mod leftovers;
    mod links;
    mod long;
    mod nodes;
    mod outage;
    mod own;
    mod restart;
    mod scene;
    mod shield;
    mod told;
    mod traps;
    mod udp;
    mod world;
}
