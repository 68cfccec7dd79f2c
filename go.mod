module tinkerlocal

go 1.26
