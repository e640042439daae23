mod connect;
mod failure;
mod getpeername;
mod health;
mod lookup;
mod pick;
mod release;
mod socket;
