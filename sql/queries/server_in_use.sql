-- Where this server is: its address, or the folders of its sockets.
SELECT coalesce(host(inet_server_addr()) || ':' || inet_server_port(),
                current_setting('unix_socket_directories') || ':' || current_setting('port'))
