mod connect;
mod getpeername;
mod socket;
